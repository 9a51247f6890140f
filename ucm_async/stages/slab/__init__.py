"""The Slab stage: blocks in the slots of preallocated files, so that none is created, renamed or unlinked for a block.

`stage` is the face; `load` and `dump` are the two ways through, and `slabs` has what both need of the slots. `room`
finds slots for dumps, with `exchange` between their classes; `space` removes: blocks, segments, what is damaged
(`aside`). `slab` is one backend: `memory` is what its processes share, `segments` its files, `recovery` and
`checkpoint` how its index comes back. `layout` is pure.
"""

from .stage import SlabStage

__all__ = ["SlabStage"]
