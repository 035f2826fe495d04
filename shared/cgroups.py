"""The limits of Linux control groups (versions 1 and 2) on this process: of its own group and of every ancestor."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

SYSTEM: Final = Path("/")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_UNLIMITED: Final = 1 << 60  # bytes; version 1 writes the largest multiple of a page below 1 << 63


@dataclass(frozen=True, slots=True)
class Mount:
    """A hierarchy of groups as it is mounted at `point`: the part of it below the group `root`.

    `controllers` are those of a hierarchy of version 1; version 2 has one hierarchy for all, and none here.
    """

    version: int
    controllers: frozenset[str]
    root: str
    point: str


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """What a group allows: `num_bytes` for all processes in it and below, of which `free_bytes` are left. `name` is a file."""

    name: str
    num_bytes: int
    free_bytes: int


def read_mounts(mountinfo: str) -> list[Mount]:
    """Return the hierarchies in the text of /proc/self/mountinfo."""
    mounts = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, system = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(system) < 3 or system[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if system[0] == "cgroup2" else 1
        controllers = frozenset(system[2].split(",")) if version == 1 else frozenset[str]()
        mounts.append(Mount(version, controllers, _unescaped(fields[3]), _unescaped(fields[4])))
    return mounts


def read_membership(text: str) -> dict[str, str]:
    """Return the group of each controller in the text of /proc/self/cgroup; that of version 2 is under ""."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            groups.update(dict.fromkeys(fields[1].split(",") if fields[1] else [""], fields[2]))
    return groups


def groups_below(mount: Mount, group: str) -> list[PurePosixPath]:
    """Return the folders, seen from `mount.point`, that may be those of `group` and its ancestors: the innermost first.

    A container may see its groups under another name than the one that it is told, or only its own group at the mount.
    """
    path, root = PurePosixPath(group), PurePosixPath(mount.root)
    if ".." in (*path.parts, *root.parts):  # beyond the root of a namespace
        return [PurePosixPath()]
    inner = path.relative_to(root) if path.is_relative_to(root) else path.relative_to("/")
    return [inner, *inner.parents]


def memory_limits(system: Path = SYSTEM) -> list[MemoryLimit]:
    """Return the limits on the memory of this process, as the files below `system` have them."""
    limits = []
    for version, folders in _lineages("memory", system):
        for folder in folders if version == 2 else _counting(folders):
            limits += _limits_of_version_2(folder) if version == 2 else _limits_of_version_1(folder)
    return [limit for limit in limits if limit.num_bytes < _UNLIMITED]


def processor_limit(system: Path = SYSTEM) -> float | None:
    """Return how many processors this process may keep busy, 1.5 for example; None where nothing says so."""
    shares = []
    for version, folders in _lineages("cpu", system):
        shares += [share for folder in folders if (share := _processors(version, folder)) is not None]
    return min(shares, default=None)


def _lineages(controller: str, system: Path) -> Iterator[tuple[int, list[Path]]]:
    """Yield, for each mount, its version and the folders of the groups that this process is in, its own first."""
    membership = read_membership(_text(system / "proc/self/cgroup") or "")
    for mount in read_mounts(_text(system / "proc/self/mountinfo") or ""):
        name = controller if mount.version == 1 else ""
        if name in membership and (mount.version == 2 or controller in mount.controllers):
            point = system / mount.point.lstrip("/")
            yield mount.version, [point / inner for inner in groups_below(mount, membership[name])]


def _counting(folders: list[Path]) -> list[Path]:
    """Those groups of version 1 that count what is in the innermost: none beyond one that does not count its children."""
    kept = folders[:1]
    for folder in folders[1:]:
        if _text(folder / "memory.use_hierarchy") == "0":
            break
        kept.append(folder)
    return kept


def _processors(version: int, folder: Path) -> float | None:
    """The processors that a group may keep busy; None for any number."""
    if version == 2:
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
    else:
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _limits_of_version_2(folder: Path) -> list[MemoryLimit]:
    """Beyond memory.max a process is killed, beyond memory.high it is slowed down until it hardly moves."""
    stats, used = _numbers(folder / "memory.stat"), _number(folder / "memory.current")
    cached = stats.get("inactive_file", 0) + stats.get("active_file", 0)
    return _limits(folder, {"memory.max": used, "memory.high": used}, cached)


def _limits_of_version_1(folder: Path) -> list[MemoryLimit]:
    stats, used = _numbers(folder / "memory.stat"), _number(folder / "memory.usage_in_bytes")
    cached = stats.get("total_inactive_file", 0) + stats.get("total_active_file", 0)
    with_swap = _number(folder / "memory.memsw.usage_in_bytes")
    files = {"memory.limit_in_bytes": used, "memory.memsw.limit_in_bytes": with_swap}
    limits = _limits(folder, files, cached)
    above = stats.get("hierarchical_memory_limit")  # of ancestors, those too that cannot be seen from in here
    if above is not None and above < min((limit.num_bytes for limit in limits), default=_UNLIMITED):
        limits.append(MemoryLimit(f"hierarchical_memory_limit in {folder}/memory.stat", above, _left(above, used, cached)))
    return limits


def _limits(folder: Path, files: dict[str, int | None], cached: int) -> list[MemoryLimit]:
    """Return the limits in `files`, with what each is compared to; files that are cached make room for whoever needs it."""
    limits = []
    for name, used in files.items():
        num_bytes = _number(folder / name)
        if num_bytes is not None:
            limits.append(MemoryLimit(str(folder / name), num_bytes, _left(num_bytes, used, cached)))
    return limits


def _left(limit: int, used: int | None, cached: int) -> int:
    return limit if used is None else max(limit - max(used - cached, 0), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", and where there is no such file or it cannot be read."""
    text = _text(path) or ""
    return int(text) if text.isdecimal() else None


def _numbers(path: Path) -> dict[str, int]:
    pairs = [line.split() for line in (_text(path) or "").splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(path: Path) -> str | None:
    """What a file holds; None where it is not there, or gone meanwhile, or not for us."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
