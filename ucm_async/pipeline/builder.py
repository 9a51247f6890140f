"""From the name of a composition to running operators."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from anyio.abc import TaskGroup

from ..abc import AsyncResource, OnProgress, Stage
from ..config import StoreConfig
from ..errors import ConfigError
from .operator import Operator
from .registry import resolve_stage
from .spec import parse_pipeline

__all__ = ["Pipeline", "build_pipeline"]


class Pipeline(AsyncResource):
    """The operators of a store, the caller's side first."""

    def __init__(self, operators: list[Operator]) -> None:
        self.operators = operators

    @property
    def first(self) -> Operator:
        """The operator that the task manager feeds."""
        return self.operators[0]

    def start(self, group: TaskGroup) -> None:
        """Start every worker."""
        for operator in self.operators:
            operator.start(group)

    async def setup(self, config: StoreConfig) -> None:
        """Hand a changed configuration to every stage."""
        for operator in self.operators:
            await operator.stage.setup(config)

    async def replace(self, name: str, stage: type[Stage], config: StoreConfig) -> None:
        """Replace the stage called `name` by a new one of class `stage` in the running store.

        Raises
        ------
        ValueError
            No stage of that name runs here.
        """
        names = [operator.stage.name for operator in self.operators]
        if name not in names:
            raise ValueError(f"name: no stage {name!r} in this pipeline, it has {', '.join(names)}")
        at = names.index(name)
        lower = self.operators[at + 1] if at + 1 < len(self.operators) else None
        _check_place(name, stage, is_last=lower is None)
        above = self.operators[at - 1].stage if at else None
        _check_encoded(above, stage)
        _check_encoded(stage, type(lower.stage) if lower is not None else None)
        new = stage(config, lower)
        new.above_encodes = above is not None and above.encodes
        await new.open()
        await self.operators[at].replace(new)

    async def aclose(self) -> None:
        """Close the stages from the caller's side down: what one still writes behind can go on to the next."""
        async with AsyncExitStack() as stack:
            for operator in reversed(self.operators):
                stack.push_async_callback(operator.stage.aclose)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return the statistics of each operator by the name of its stage."""
        return {operator.stage.name: operator.statistics() for operator in self.operators}


async def build_pipeline(config: StoreConfig, on_progress: OnProgress | None = None) -> Pipeline:
    """Resolve, make and open the stages of ``config.store_pipeline``, bottom first.

    Parameters
    ----------
    config
        What is asked for.
    on_progress
        Told by the stages how far their opening is.

    Raises
    ------
    ConfigError, UnknownNameError
        The composition cannot be.
    """
    names = parse_pipeline(config.store_pipeline)
    # Importing a stage, or looking for it in the metadata of every installed package, reads files.
    classes = [await asyncio.to_thread(resolve_stage, name, config.plugin_dirs) for name in names]
    for position, (name, stage) in enumerate(zip(names, classes, strict=True)):
        _check_place(name, stage, is_last=position == len(names) - 1)
    above: list[type[Stage] | None] = [None, *classes[:-1]]
    for upper, stage in zip(above, classes, strict=True):
        _check_encoded(upper, stage)
    operators: list[Operator] = []
    async with AsyncExitStack() as opened:
        for stage_class, upper in zip(reversed(classes), reversed(above), strict=True):
            made = stage_class(config, operators[0] if operators else None)
            made.above_encodes = upper is not None and upper.encodes
            made.on_progress = on_progress
            await made.open()
            opened.push_async_callback(made.aclose)
            operators.insert(0, Operator(made, config))
        opened.pop_all()
    return Pipeline(operators)


def _check_place(name: str, stage: type[Stage], *, is_last: bool) -> None:
    if stage.needs_lower is True and is_last:
        raise ConfigError(f"store_pipeline: {name} needs a stage below it, for instance {name}|Posix")
    if stage.needs_lower is False and not is_last:
        raise ConfigError(f"store_pipeline: {name} must be the last stage")


def _check_encoded(upper: type[Stage] | Stage | None, lower: type[Stage] | None) -> None:
    if upper is not None and lower is not None and upper.encodes and not lower.takes_encoded:
        raise ConfigError(
            f"store_pipeline: {upper.name} hands encoded blocks to {lower.name}, which cannot store them; "
            f"{upper.name}|Posix can"
        )
