"""How stages are chosen, loaded, joined and replaced."""

from .builder import Pipeline, build_pipeline
from .lane import Lane, LaneStatistics
from .operator import Operator
from .registry import known_stages, register_stage, resolve_stage
from .spec import parse_pipeline

__all__ = [
    "Lane",
    "LaneStatistics",
    "Operator",
    "Pipeline",
    "build_pipeline",
    "known_stages",
    "parse_pipeline",
    "register_stage",
    "resolve_stage",
]
