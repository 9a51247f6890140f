"""``ucm-async replay``: serve a workload from a store as an inference frontend does, and compare every loaded byte."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..types import Status
from ._options import amount, positive_int, stamped_bytes
from ._workloads import open_workload

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ..bench.report import Report
    from ..bench.workloads import Request

__all__ = ["add_arguments", "run"]

_TRACE_BLOCK_BYTES: Final = 65536  # a trace has many blocks; at 64 KiB, 2000 requests of a chat service are some GB
_EXIT_FAILED: Final = 1
_EXIT_INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = __doc__
    parser.epilog = (
        "Exit code: 0 all well, 1 wrong bytes or unexpected failures, 2 wrong usage or trace, 130 interrupted."
    )
    work = parser.add_argument_group("workload")
    work.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="Mooncake-format trace, JSON lines (default: seeded multi-turn chats)",
    )
    work.add_argument(
        "--requests", type=positive_int, metavar="N", help="serve the first N (default: 800, or the whole trace)"
    )
    work.add_argument("--seed", type=int, default=0, help="of the chats (default: %(default)s)")
    work.add_argument(
        "--block-bytes",
        type=stamped_bytes,
        metavar="B",
        help="default: 368640 (16 tokens of a small model), 65536 for a trace",
    )
    store = parser.add_argument_group("store")
    store.add_argument("--pipeline", default="Posix", help="stages, joined by | (default: %(default)s)")
    store.add_argument(
        "--dir", type=Path, help="keep the blocks there (default: a temporary directory here, removed at the end)"
    )
    store.add_argument("--engine", choices=("auto", "psync", "aio", "uring"), help="default: auto")
    store.add_argument(
        "--cache-gb",
        type=amount,
        metavar="GB",
        help="memory of a Cache, which is that of this replay alone (default: 1)",
    )
    store.add_argument("--capacity-gb", type=amount, metavar="GB", help="cap of the store on disk (default: none)")
    how = parser.add_argument_group("how it is asked")
    how.add_argument(
        "--concurrency", type=positive_int, default=4, metavar="N", help="requests in flight (default: %(default)s)"
    )
    how.add_argument(
        "--timeout-ms",
        type=amount,
        default=1000.0,
        metavar="MS",
        help="deadline of a load, 0: none (default: %(default)g)",
    )
    how.add_argument(
        "--durability", choices=("cached", "stored", "synced"), default="stored", help="of dumps (default: %(default)s)"
    )
    how.add_argument(
        "--registered", action="store_true", help="register the memory: the engine reads and writes it without a copy"
    )
    how.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="default: uvloop where it is installed"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from ..bench.loops import loop_name, run_on  # noqa: PLC0415  (the other commands need not import this)
    from ..bench.report import Report  # noqa: PLC0415

    report = Report()
    outcome: dict[str, Any] = {}
    try:
        with (
            open_workload(args.trace, args.requests, args.seed) as requests,
            _directory(args.dir) as directory,
            _Bars(args) as bars,
        ):
            outcome["loop"] = loop_name(args.loop)
            run_on(outcome["loop"], _replay(args, requests, directory, report, outcome, bars))
    except KeyboardInterrupt:
        print("interrupted; what was served until then:", file=sys.stderr)
        _show(args, report, outcome)
        return _EXIT_INTERRUPTED
    _show(args, report, outcome)
    return _EXIT_FAILED if outcome["problems"] else 0


async def _replay(
    args: argparse.Namespace,
    requests: Iterable[Request],
    directory: Path,
    report: Report,
    outcome: dict[str, Any],
    bars: _Bars,
) -> None:
    from ..bench.replay import ReplayOptions, replay  # noqa: PLC0415
    from ..store import open_store  # noqa: PLC0415

    block_bytes = _block_bytes(args)
    options = ReplayOptions(
        block_bytes=block_bytes,
        timeout_s=args.timeout_ms / 1e3 or None,
        concurrency=args.concurrency,
        durability=args.durability,
        registered=args.registered,
    )
    settings: dict[str, Any] = {
        "storage_backends": [str(directory)],
        "block_size": block_bytes,
        "shard_size": block_bytes,
        "namespace": f"replay/{block_bytes}",
    }
    if args.engine is not None:
        settings["io_engine"] = args.engine
    if args.cache_gb is not None:
        settings["cache_buffer_capacity_gb"] = args.cache_gb
    if "Cache" in args.pipeline:
        settings["unique_id"] = f"replay-{os.getpid()}"  # nobody else's blocks, which would be hits that are not ours
    if args.capacity_gb is not None:
        settings["posix_capacity_gb"] = args.capacity_gb
    async with open_store(args.pipeline, on_progress=bars.on_opening, **settings) as store:
        outcome["pipeline"] = args.pipeline
        outcome["block_bytes"] = block_bytes
        outcome["engine"] = _engine_names(store.statistics().pipeline)
        try:
            await replay(store, requests, options, report, bars.on_request)
        finally:
            outcome.update(_cache_hits(store.statistics().pipeline))
    # A capped store may evict between lookup and load, and refuse dumps while it collects.
    capped = (Status.MISS, Status.NO_SPACE) if args.capacity_gb is not None else ()
    outcome["problems"] = report.problems(expected=(Status.TIMEOUT, *capped))


def _block_bytes(args: argparse.Namespace) -> int:
    from ..bench.blocks import SAMPLE_BLOCK_BYTES  # noqa: PLC0415

    default = SAMPLE_BLOCK_BYTES if args.trace is None else _TRACE_BLOCK_BYTES
    return int(args.block_bytes or default)


@contextlib.contextmanager
def _directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    from ..bench.places import scratch_directory  # noqa: PLC0415

    with scratch_directory(Path(), "ucm-replay-") as made:  # here, not in /tmp, which may be memory
        yield made


class _Bars:
    """Bars on stderr: one of the requests, and while the store is opened one of each thing that takes long."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        from ..bench.workloads import MultiTurn  # noqa: PLC0415

        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
        total = args.requests or (MultiTurn().requests if args.trace is None else None)
        self._requests = self._shown.add_task("requests served", total=total)
        self._opening: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._shown.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._shown.stop()

    def on_request(self) -> None:
        """One more is served."""
        self._shown.advance(self._requests)

    def on_opening(self, what: str, done: int, total: int) -> None:
        """See `ucm_async.abc.OnProgress`."""
        if what not in self._opening:
            self._opening[what] = self._shown.add_task(what, total=total)
        self._shown.update(self._opening[what], completed=done, total=total, visible=done < total)


def _engine_names(pipeline: Any) -> str:
    """Return the names of the engines in the counters of a pipeline's stages; "none" where no stage has one."""
    found = []
    todo = [pipeline]
    while todo:
        for key, value in todo.pop().items():
            if key == "engine" and isinstance(value, Mapping) and "name" in value:
                # "auto" names the ring that it found; it uses threads for a few requests.
                found.append(f"{value['name']} ({value['ring']}, psync)" if "ring" in value else str(value["name"]))
            elif isinstance(value, Mapping):
                todo.append(value)
    return ", ".join(sorted(set(found))) or "none"


def _cache_hits(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Cache was asked for and had, dumps included; nothing if there is none."""
    if "Cache" not in pipeline:
        return {}
    counters = pipeline["Cache"]["stage"]["buffer"]
    hits, asked = counters["hits"], counters["hits"] + counters["misses"]
    ratio = round(hits / asked, 6) if asked else 0.0
    return {"cache": {"hits": hits, "asked": asked, "hit_ratio": ratio, "policy": counters["policy"]}}


def _show(args: argparse.Namespace, report: Report, outcome: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({**report.as_dict(), **outcome}, indent=2))
        return
    from ..bench.tables import print_replay  # noqa: PLC0415

    print_replay(report, outcome)
