"""Tasks: checking, slicing, settling. Knows neither stages nor engines."""

from .arguments import WHOLE_BLOCK, check_rows, refuse_duplicates
from .batch import Slice, SliceBatch, make_batches
from .extents import Cuts, cut_row
from .groups import group_blocks, group_rows, ids_among, rank_in_group
from .manager import SliceSink, TaskManager, TaskStatistics
from .memory import Memory, Regions, memory_of_addresses, memory_of_buffers
from .reasons import reasons_at, reasons_of
from .result import FailureSet, TaskResult
from .slicing import cut_slices
from .task import LaneName, Task

__all__ = [
    "WHOLE_BLOCK",
    "Cuts",
    "FailureSet",
    "LaneName",
    "Memory",
    "Regions",
    "Slice",
    "SliceBatch",
    "SliceSink",
    "Task",
    "TaskManager",
    "TaskResult",
    "TaskStatistics",
    "check_rows",
    "cut_row",
    "cut_slices",
    "group_blocks",
    "group_rows",
    "ids_among",
    "make_batches",
    "memory_of_addresses",
    "memory_of_buffers",
    "rank_in_group",
    "reasons_at",
    "reasons_of",
    "refuse_duplicates",
]
