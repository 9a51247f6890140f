"""Engines move bytes between file ranges and memory, a batch at a time, for one event loop.

General layout::

    requests    the packed record that all of them understand (a leaf: it imports nothing)
    arena       the memory that belongs to the library, in slots
    chains      tables of chains, one a block, and the copies between slots and callers
    waits       ways to wait that keep hold of the memory
    base        native contexts -> asyncio: a batch, a future
    ring        a driver for batches and a direct way for what is small, for aio and uring
    pool        the adapter over threads, for file operations and copies
    psync aio uring     the data engines
    auto        picks among them, batch by batch
    namedmemory, processes, watching    shared memory by name, who lives, and word of what others change in it
    system      what else a stage asks of the machine, and where a simulation stands in
    probe       what this machine offers, and `make_engine`, which falls back and says why

Nothing is imported here: `requests` must be importable without the extension.
"""
