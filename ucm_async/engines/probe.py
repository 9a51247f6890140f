"""What this machine offers, which engine to take, and why not another."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..abc import Engine
from ..errors import ConfigError
from ..native import NATIVE, WHY, AioContext, UringContext, io_setup_limit
from .aio import AioEngine
from .auto import AutoEngine
from .base import ContextEngine
from .psync import PsyncEngine
from .ring import HELPERS
from .system import current_system
from .uring import UringEngine

if TYPE_CHECKING:
    from .arena import Arena

__all__ = ["ENGINES", "EngineReport", "choose_engine", "make_engine", "probe_direct", "probe_engines"]

ENGINES: Final = ("uring", "aio", "psync")
"""The data engines, the preferred one first. psync works everywhere."""

DIRECT_BYTES: Final = 4096
IN_MEMORY: Final = ("tmpfs", "ramfs")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Whether an engine can be had here, and why not (``reason`` is empty if it can)."""

    name: str
    available: bool
    reason: str = ""


def probe_engines() -> tuple[EngineReport, ...]:
    """Set each engine up for real, and free it again. Blocks for some milliseconds: not for the event loop.

    Returns
    -------
    tuple of EngineReport
        One for each of `ENGINES`, in that order.
    """
    return (
        _try("uring", lambda: UringContext(1).close()),
        _try("aio", lambda: AioContext(1).close()),
        EngineReport("psync", True),
    )


def _try(name: str, setup: Callable[[], Any]) -> EngineReport:
    try:
        setup()
    except OSError as error:
        disabled = _sysctl("kernel/io_uring_disabled") if name == "uring" and error.errno == errno.EPERM else ""
        if disabled in ("1", "2"):
            return EngineReport(name, False, f"kernel.io_uring_disabled is {disabled} (EPERM)")
        return EngineReport(name, False, _explain(name, error))
    return EngineReport(name, True)


def _explain(name: str, error: OSError) -> str:
    """Say in an administrator's words why an engine could not be set up. Reads no file: this may run on a loop."""
    if not NATIVE:
        return f"needs the extension: {WHY}"
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    if name == "aio" and error.errno == errno.EAGAIN:
        used, most = io_setup_limit()
        return f"fs.aio-max-nr is used up ({used} of {most}); raise it with sysctl ({code})"
    if error.errno == errno.ENOSYS:
        return f"the kernel has no {name}, or a seccomp filter hides it ({code})"
    if error.errno in (errno.EPERM, errno.EACCES):
        sysctl = "kernel.io_uring_disabled, " if name == "uring" else ""
        return f"forbidden, by {sysctl}a seccomp filter or a security module ({code})"
    if error.errno == errno.ENOMEM:
        return f"no memory; a ring may need a higher RLIMIT_MEMLOCK (ulimit -l) ({code})"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many open files; raise ulimit -n ({code})"
    return f"{error.strerror or error} ({code})"


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def choose_engine(requested: str, direct: bool, reports: Iterable[EngineReport]) -> tuple[str, str]:
    """Pick an engine. Pure.

    Parameters
    ----------
    requested
        One of `ENGINES`, or "auto".
    direct
        Whether the files are opened with O_DIRECT.
    reports
        What is known of each engine; an engine without a report counts as available.

    Returns
    -------
    tuple of str
        The engine's name, and why it is that one.

    Raises
    ------
    ConfigError
        There is no engine of that name.
    """
    if requested != "auto" and requested not in ENGINES:
        raise ConfigError(f"io_engine: {requested!r}, must be one of auto, {', '.join(ENGINES)}")
    against = {report.name: report.reason for report in reports if not report.available}
    if not direct:
        against.setdefault("aio", "io_submit waits for the disk on buffered files")
    if requested in ENGINES and requested not in against:
        return requested, "asked for"
    order = list(dict.fromkeys([requested, *ENGINES] if requested in ENGINES else ENGINES))
    name = next((name for name in order if name not in against), "psync")
    better = order[: order.index(name)]
    if not better:
        return name, "the first choice"
    what = "the best that works" if requested == "auto" else f"in place of {requested}"
    return name, f"{what} ({'; '.join(f'{other}: {against[other]}' for other in better)})"


def make_engine(
    requested: str,
    *,
    direct: bool,
    depth: int,
    max_bytes: int,
    threads: int,
    memory: Arena | None = None,
    helpers: int = HELPERS,
) -> Engine:
    """Make an engine on the running loop; what cannot be set up is replaced by the next best, psync in the end.

    Parameters
    ----------
    requested
        "auto", "psync", "aio" or "uring".
    direct
        Whether the files are opened with O_DIRECT. aio is never used where they are not.
    depth
        How many requests a ring may have with the kernel.
    max_bytes
        How many bytes it may, 0 for no bound.
    threads
        Of psync.
    memory
        Registered with a ring where the kernel allows it.
    helpers
        Threads that run what is no transfer, for a ring.

    Returns
    -------
    Engine
        ``statistics()["why"]`` tells the reason for the choice, and what was wrong with the others.

    Raises
    ------
    ConfigError
        There is no engine of that name.
    """
    stand_in = current_system().make_engine(requested, depth)
    if stand_in is not None:
        return stand_in
    reports: list[EngineReport] = []
    while True:
        name, why = choose_engine(requested, direct, reports)
        try:
            engine = _make(name, direct, depth, max_bytes, threads, memory, helpers)
        except OSError as error:
            if name == "psync":
                raise
            reports.append(EngineReport(name, False, _explain(name, error)))
            continue
        engine.why = why
        if requested not in ("auto", name):
            _log.warning("io_engine %s is not to be had here: using %s %s", requested, name, why)
        return AutoEngine(engine, threads) if requested == "auto" and name != "psync" else engine


def _make(
    name: str, direct: bool, depth: int, max_bytes: int, threads: int, memory: Arena | None, helpers: int
) -> ContextEngine:
    if name == "uring":
        return UringEngine(depth, max_bytes, force_async=not direct, memory=memory, helpers=helpers)
    if name == "aio":
        return AioEngine(depth, max_bytes, helpers=helpers)
    return PsyncEngine(threads)


def probe_direct(directory: str | os.PathLike[str]) -> tuple[bool, str]:
    """Write and read back an O_DIRECT file in `directory`. Blocks: not for the event loop.

    Returns
    -------
    tuple
        Whether O_DIRECT is of use there, and if not, why. Nothing stays behind.

    Notes
    -----
    A file system in memory may take the flag, but has no disk behind a cache: it copies in the submitting call. So it
    counts as buffered, and a ring leaves its copies to the kernel's workers.
    """
    told = current_system().direct_reason(directory)
    if told is not None:
        return not told, told
    if not hasattr(os, "O_DIRECT"):
        return False, "this system has no O_DIRECT"
    path = ""
    try:
        kind = _file_system(directory)
        if kind in IN_MEMORY:
            return False, f"{kind} is memory: there is no cache to go around"
        fd, path = tempfile.mkstemp(prefix=".direct-", dir=directory)
        os.close(fd)
        return _write_and_read(path)
    except OSError as error:
        return False, f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, error.errno)})"
    finally:
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _file_system(directory: str | os.PathLike[str]) -> str:
    """Return the type of the file system that holds `directory`; empty where the system does not tell."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, source = line.partition(
                " - "
            )  # proc(5): the device is the third field, the type follows the dash
            if mount.split()[2] == number:
                return source.split()[0]
    return ""


def _write_and_read(path: str) -> tuple[bool, str]:
    pattern = bytes(range(256)) * (DIRECT_BYTES // 256)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, DIRECT_BYTES) as page:  # aligned, as O_DIRECT wants it
            page[:] = pattern
            if os.pwrite(fd, page, 0) != DIRECT_BYTES:
                return False, "a short write"
            page[:] = bytes(DIRECT_BYTES)
            if os.preadv(fd, [page], 0) != DIRECT_BYTES or page[:] != pattern:
                return False, "what was written did not come back"
    finally:
        os.close(fd)
    return True, ""
