"""The Posix stage.

`stage` is the face; `load` and `dump` are the two ways through; `files` makes packed requests of file operations;
`backend` knows the directories; `layout`, `header` and `writes` are pure: where a block lies, what its header says,
and when it is whole.
"""

from .stage import PosixStage

__all__ = ["PosixStage"]
