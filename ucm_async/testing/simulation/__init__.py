"""The laboratory of faults: whole stores on a simulated machine, driven by a seed.

General layout::

    clock             an event loop on a simulated clock
    files disk        what is on the disk, as reads show it and on the medium; power cuts
    faults            what goes wrong, how often, and how long things take
    memory chain      packed requests at work on real memory
    engine process    an engine and a system for stages, in a process that can be killed
    plan              what a seed stands for, as data
    model             what the store has promised, and what it may answer
    store_under_test calls walk   real stores, asked as the plan says
    run               from a seed to its outcome

It is told in docs/design/simulation.md. Needs nothing but the library itself.
"""
