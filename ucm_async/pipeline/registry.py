"""Where stages come from: names to classes, imported when first used."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from ..abc import Stage
from ..errors import ConfigError, UnknownNameError

__all__ = ["ENTRY_POINT_GROUP", "known_stages", "register_stage", "resolve_stage"]

ENTRY_POINT_GROUP: Final = "ucm_async.stages"

_BUILT_IN: Final = {
    "Cache": "ucm_async.stages.cache:CacheStage",
    "Compress": "ucm_async.stages.compress:CompressStage",
    "Posix": "ucm_async.stages.posix:PosixStage",
    "Slab": "ucm_async.stages.slab:SlabStage",
    "Empty": "ucm_async.stages.empty:EmptyStage",
    "Fake": "ucm_async.stages.fake:FakeStage",
}

_registered: dict[str, str | type[Stage] | Callable[[], type[Stage]]] = dict(_BUILT_IN)


def register_stage(name: str, stage: str | type[Stage] | Callable[[], type[Stage]], *, replace: bool = False) -> None:
    """Make a stage known by `name`.

    Parameters
    ----------
    name
        As it will stand in ``store_pipeline``.
    stage
        The class, ``"module:Class"``, or a function that returns the class when it is first needed.
    replace
        Whether a stage of that name may be replaced, for stores opened from now on.

    Raises
    ------
    ValueError
        The name is taken and `replace` is false.
    """
    if name in _registered and not replace:
        raise ValueError(f"name: a stage {name!r} is registered already; pass replace=True to replace it")
    _registered[name] = stage


def known_stages(plugin_dirs: tuple[str, ...] = ()) -> list[str]:
    """Names that can stand in a composition, sorted; nothing is imported for it."""
    names = set(_registered) | {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    for directory in plugin_dirs:
        names |= {path.stem for path in Path(directory).glob("*.py")}
    return sorted(names)


def resolve_stage(name: str, plugin_dirs: tuple[str, ...] = ()) -> type[Stage]:
    """Return the class of stage `name`, importing it now if need be.

    Looked for in this order: ``module:Class``, what was registered, entry points of the group ``ucm_async.stages``, and
    ``NAME.py`` with a class ``NAME`` or ``NAMEStage`` in a plug-in directory.

    Raises
    ------
    UnknownNameError
        There is none; the message lists the nearest names.
    ConfigError
        What was found cannot be imported, or is no `ucm_async.abc.Stage`.
    """
    if ":" in name:
        return _import(name, name)
    found = _registered.get(name)
    if found is not None:
        return (
            _import(name, found)
            if isinstance(found, str)
            else _checked(name, found if isinstance(found, type) else found())
        )
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _import(name, point.value)
    for directory in plugin_dirs:
        path = Path(directory) / f"{name}.py"
        if path.is_file():
            return _from_file(name, path)
    names = known_stages(plugin_dirs)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownNameError(f"store_pipeline: no stage {name!r}{hint} (known: {', '.join(names)})")


def _import(name: str, target: str) -> type[Stage]:
    module_name, _, attribute = target.partition(":")
    try:
        return _checked(name, getattr(importlib.import_module(module_name), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"stage {name!r}: cannot import {target}: {error}") from error


def _from_file(name: str, path: Path) -> type[Stage]:
    module_name = f"ucm_async_plugin_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"stage {name!r}: {path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigError(f"stage {name!r}: {path} cannot be imported: {error}") from error
    found = getattr(module, name, None) or getattr(module, f"{name}Stage", None)
    if found is None:
        raise ConfigError(f"stage {name!r}: {path} has no class {name} or {name}Stage")
    return _checked(name, found)


def _checked(name: str, found: object) -> type[Stage]:
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise ConfigError(f"stage {name!r}: {found!r} is no ucm_async.abc.Stage")
    return found
