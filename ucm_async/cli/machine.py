"""What a machine offers to a store: one finding a fact, with what to change where that would help."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from .. import __version__
from ..engines.probe import probe_direct, probe_engines
from ..native import HAVE_CRC32C, NATIVE, WHY, Mapping, io_setup_limit
from .segments import inspect_all

__all__ = ["Finding", "State", "examine"]

State: TypeAlias = Literal["ok", "slower", "broken"]

MIB: Final = 1 << 20
HUGE_PAGE_BYTES: Final = 2 * MIB
HUGE_PAGE_SYSFS: Final = "/sys/kernel/mm/transparent_hugepage"
SHM_DIRECTORY: Final = "/dev/shm"
SHM_BYTES_WANTED: Final = 1 << 30  # the Cache stage's default
DESCRIPTORS_WANTED: Final = 4096
MEMLOCK_BYTES_WANTED: Final = 256 * MIB  # both staging buffers at their default, and room for registered memory


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about this machine.

    Attributes
    ----------
    area : str
        What it belongs to: "python", "engines", "storage", "memory" or "processor".
    name : str
        The fact.
    value : str, int, bool or None
        As found; sizes in bytes, None where it cannot be told.
    state : str
        "ok"; "slower": it works, and would be faster with a change; "broken": a store cannot serve like this.
    text : str
        `value` for people.
    advice : str
        What to change; empty where nothing needs to.
    """

    area: str
    name: str
    value: str | int | bool | None
    state: State = "ok"
    text: str = ""
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)


def examine(directory: str) -> list[Finding]:
    """Look at everything a store depends on.

    Parameters
    ----------
    directory
        Where blocks would be stored. Nothing but a temporary file is made in it.

    Returns
    -------
    list of Finding
    """
    return [*_python(), *_engines(), *_storage(directory), *_memory(), *_processor()]


def _python() -> Iterator[Finding]:
    implementation = platform.python_implementation()
    version = platform.python_version()
    yield Finding("python", "interpreter", version, text=f"{implementation} {version}")
    yield Finding("python", "ucm_async", __version__)
    yield Finding(
        "python",
        "extension",
        NATIVE,
        "ok" if NATIVE else "slower",
        "ucm_async._native" if NATIVE else WHY,
        "" if NATIVE else "install a C compiler and Python.h, then reinstall; without it only psync works, and slowly",
    )
    ipc = _version_of("posix_ipc")
    advice = "" if ipc else "pip install 'ucm-async[posix_ipc]': without it a Cache's memory is not shared"
    yield Finding("python", "posix_ipc", ipc, "ok" if ipc else "slower", ipc or "not installed", advice)
    uvloop = _version_of("uvloop")
    advice = "" if uvloop else "pip install 'ucm-async[uvloop]'"
    yield Finding("python", "uvloop", uvloop, "ok" if uvloop else "slower", uvloop or "not installed", advice)


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engines() -> Iterator[Finding]:
    reports = probe_engines()
    none = not any(report.available for report in reports)
    for report in reports:
        state: State = "ok" if report.available else "broken" if none else "slower"
        text = "works" if report.available else report.reason if NATIVE else "needs the extension"
        advice = "" if report.available else _engine_advice(report.name)
        yield Finding("engines", report.name, report.available, state, text, advice)
    in_use, most = io_setup_limit()
    if most >= 0:
        yield Finding("engines", "fs.aio-nr of fs.aio-max-nr", f"{in_use}/{most}", text=f"{in_use} of {most} in use")
    disabled = _read("/proc/sys/kernel/io_uring_disabled")
    if disabled:
        meaning = {"0": "io_uring allowed", "1": "io_uring for kernel.io_uring_group only", "2": "io_uring forbidden"}
        yield Finding("engines", "kernel.io_uring_disabled", disabled, text=meaning.get(disabled, disabled))


def _engine_advice(name: str) -> str:
    if not NATIVE:
        return ""  # the extension's own line says what to do
    return {
        "aio": "sysctl -w fs.aio-max-nr=1048576, where the limit is the reason",
        "uring": "sysctl -w kernel.io_uring_disabled=0, or a container profile that allows io_uring",
    }.get(name, "")


def _storage(directory: str) -> Iterator[Finding]:
    path = os.path.abspath(directory)
    if not os.path.isdir(path):
        yield Finding("storage", "directory", path, "broken", f"{path} is no directory", f"mkdir -p {path}")
        return
    writable = os.access(path, os.W_OK | os.X_OK)
    advice = "" if writable else "give this user the right to write there"
    text = path if writable else f"{path} is not writable"
    yield Finding("storage", "directory", path, "ok" if writable else "broken", text, advice)
    file_system = _file_system_of(path)
    on_memory = file_system in ("tmpfs", "ramfs")
    advice = "memory, not a disk: blocks do not survive a reboot" if on_memory else ""
    yield Finding("storage", "file system", file_system, "slower" if on_memory else "ok", advice=advice)
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    yield Finding("storage", "free", free, "ok" if free else "broken", _size(free), "" if free else "make room")
    if writable:
        direct, why = probe_direct(path)
        advice = "" if direct else "use a file system on a disk (ext4, xfs); here files go through the page cache"
        yield Finding("storage", "O_DIRECT", direct, "ok" if direct else "slower", "works" if direct else why, advice)


def _file_system_of(path: str) -> str | None:
    """Return the type of the file system that holds `path`, from the kernel's table of mounts."""
    best, found = -1, None
    real = os.path.realpath(path)
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        # proc(5): the mount point is field 5, blanks in octal; the type follows " - ". Later mounts hide earlier ones.
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= best:
            best, found = len(mount), right.split()[0]
    return found


def _memory() -> Iterator[Finding]:
    for name in ("enabled", "shmem_enabled"):
        value = _chosen(_read(f"{HUGE_PAGE_SYSFS}/{name}"))
        # shmem_enabled may stay "never": shared arenas collapse their pages by themselves, as is tried below.
        bad = name == "enabled" and value == "never"
        advice = f"echo madvise > {HUGE_PAGE_SYSFS}/enabled" if bad else ""
        yield Finding("memory", f"huge pages, {name}", value, "slower" if bad else "ok", value or "unknown", advice)
    yield _huge_finding("huge pages, private memory", _page_mode(shared=False))
    yield _huge_finding("huge pages, shared memory", _page_mode(shared=True))
    yield from _shm()
    yield from _limits()


def _page_mode(*, shared: bool) -> str:
    """Map a little memory as an arena does, and tell what pages it got."""
    if shared and not hasattr(os, "O_TMPFILE"):
        return "not available: needs Linux"
    fd = -1
    try:
        if shared:
            fd = os.open(SHM_DIRECTORY, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
            os.truncate(fd, HUGE_PAGE_BYTES)
        mapping = Mapping(HUGE_PAGE_BYTES, fd)
        try:
            return mapping.page_mode
        finally:
            mapping.close()
    except OSError as error:
        return f"not available: {error.strerror}"
    finally:
        if fd >= 0:
            os.close(fd)


def _huge_finding(name: str, mode: str) -> Finding:
    if mode == "huge":
        return Finding("memory", name, mode)
    needs = "Linux 6.1 or later for MADV_COLLAPSE" if "shared" in name else "free memory that is not fragmented"
    advice = f"{needs}; small pages halve the speed of O_DIRECT" if NATIVE else ""
    return Finding("memory", name, mode, "slower", advice=advice)


def _shm() -> Iterator[Finding]:
    try:
        room = os.statvfs(SHM_DIRECTORY)
    except OSError as error:
        advice = "mount a tmpfs there; the Cache stage needs it"
        yield Finding("memory", SHM_DIRECTORY, None, "slower", error.strerror or "missing", advice)
        return
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    small = free < SHM_BYTES_WANTED
    advice = f"mount -o remount,size=8G {SHM_DIRECTORY} (docker run --shm-size), for the Cache stage" if small else ""
    text = f"{_size(size)}, {_size(free)} free"
    yield Finding("memory", SHM_DIRECTORY, size, "slower" if small else "ok", text, advice)
    if NATIVE:
        yield from _segments()


def _segments() -> Iterator[Finding]:
    """Tell of the Cache's segments: what crashed processes left takes memory until somebody adopts or removes it."""
    found = inspect_all()
    left = [one.name for one in found if one.state in ("dead", "unfinished", "damaged")]
    text = f"{len(found)}, left by crashed processes: {', '.join(left) or 'none'}"
    advice = "a new store adopts it, or: ucm-async shm remove NAME" if left else ""
    yield Finding("memory", "segments of the Cache", len(found), "slower" if left else "ok", text, advice)


def _limits() -> Iterator[Finding]:
    import resource  # noqa: PLC0415 - not on every system

    for name, wanted, advice in (
        ("RLIMIT_MEMLOCK", MEMLOCK_BYTES_WANTED, "ulimit -l unlimited: io_uring can then register its buffers"),
        ("RLIMIT_NOFILE", DESCRIPTORS_WANTED, f"ulimit -n {DESCRIPTORS_WANTED}: a block under way holds a descriptor"),
    ):
        soft, _hard = resource.getrlimit(getattr(resource, name))
        unlimited = soft == resource.RLIM_INFINITY
        enough = unlimited or soft >= wanted or (name == "RLIMIT_MEMLOCK" and _may_lock_memory())
        text = "unlimited" if unlimited else _size(soft) if name == "RLIMIT_MEMLOCK" else str(soft)
        value = None if unlimited else soft
        yield Finding("memory", name, value, "ok" if enough else "slower", text, "" if enough else advice)


def _may_lock_memory() -> bool:
    """Whether RLIMIT_MEMLOCK does not apply, because CAP_IPC_LOCK (14) is in force, as for root outside containers."""
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 14 & 1)
    return False


def _processor() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "" if usable > 1 else "a second core lets copies and the event loop run side by side"
    text = f"{usable} of {os.cpu_count()} usable"
    yield Finding("processor", "cores", usable, "ok" if usable > 1 else "slower", text, advice)
    checksum = "crc32c instruction" if HAVE_CRC32C else "crc32c computed in software"
    yield Finding("processor", "checksum", HAVE_CRC32C, "ok" if HAVE_CRC32C else "slower", checksum)
    kernel = platform.release()
    yield Finding("processor", "kernel", kernel, text=f"{platform.system()} {kernel} {platform.machine()}")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def _chosen(choices: str | None) -> str | None:
    """Return what stands in brackets: the kernel writes ``always [madvise] never``."""
    if choices is None or "[" not in choices:
        return choices
    return choices.partition("[")[2].partition("]")[0]


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if n >= 10 or n == int(n) else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
