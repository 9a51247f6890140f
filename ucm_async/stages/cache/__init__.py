"""The Cache stage.

General layout::

    segment      shared memory and its life; blocks, belongs into a thread
    transbuffer  the same for one store on its loop: slots, addresses, claims
    waiting      for what somebody else reads, in this process or another
    below        whole blocks between slots and the stage below
    admission    how much of the cache each kind of work may hold
    moves        copies between slots and callers
    fills        reads into claimed slots, which are published
    bypass       rows that go round the cache
    load_queue   loads
    dump_queue   dumps of whole blocks; shard_dumps (with partial and naming) those of single shards
    behind       what is owed to the stage below
    fetch        prefetches, and what leases do not find; lease: views of slots
    stage        the face

Who holds a slot, by a claim or a lease, is always one object with one place where it gives back what is left over.
"""

from .stage import CacheStage

__all__ = ["CacheStage"]
