"""What is remembered of this machine's speed from one start to the next, and what real runs say about it."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from filelock import FileLock, Timeout
from msgpack import UnpackException, packb, unpackb

from layermesh.shared.library.home import home
from layermesh.shared.machine_profile import MachineProfile

MOST_FILE_BYTES: Final = 1 << 20
MOST_PROFILES: Final = 16
MOST_RUNS: Final = 256
_VERSION: Final = 1
_NEWEST: Final = 0.25  # weight of the newest run in the average
_KEY_CHARS: Final = 1000
_LEAST_SLOWDOWN: Final = 1 / 16  # beyond these a run says more about its circumstances than about the machine
_MOST_SLOWDOWN: Final = 64.0
_PATIENCE_SECONDS: Final = 2.0


@dataclass(slots=True)
class _Contents:
    """Profiles by machine, and the seconds per byte of runs by model and form; the last used ones last."""

    profiles: dict[str, MachineProfile] = field(default_factory=dict)
    runs: dict[tuple[str, str], float] = field(default_factory=dict)


class ProfileCache:
    """A small file, shared by everything of layermesh on this machine; one that is damaged counts as empty.

    Nothing depends on it: where it cannot be written, things are measured again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or home() / "profile.msgpack"

    def find(self, key: str) -> MachineProfile | None:
        """Return the profile that was kept under `key`, without budgets."""
        return _load(self._path).profiles.get(key)

    def keep(self, key: str, profile: MachineProfile) -> None:
        """Keep the rates of `profile` under `key`."""

        def change(contents: _Contents) -> None:
            contents.profiles.pop(key, None)
            contents.profiles[key] = profile
            _shorten(contents.profiles, MOST_PROFILES)

        self._change(change)

    def note_run(self, fingerprint: str, form: str, seconds_per_byte: float) -> None:
        """Note how long a model's weights in `form` really took, per byte that a token went through."""
        if not 0 < seconds_per_byte < 1:
            return

        def change(contents: _Contents) -> None:
            before = contents.runs.pop((fingerprint, form), seconds_per_byte)
            contents.runs[fingerprint, form] = before + _NEWEST * (seconds_per_byte - before)
            _shorten(contents.runs, MOST_RUNS)

        self._change(change)

    def slowdown(self, fingerprint: str, form: str, profile: MachineProfile) -> float:
        """Return how many times longer runs of a model take than `profile` has it; 1 where nothing is known."""
        seconds_per_byte, rate = _load(self._path).runs.get((fingerprint, form)), profile.weight_rates.get(form)
        if seconds_per_byte is None or rate is None:
            return 1.0
        return min(max(seconds_per_byte * rate, _LEAST_SLOWDOWN), _MOST_SLOWDOWN)

    def slowdowns(self, profile: MachineProfile) -> dict[str, float]:
        """Return what `slowdown` does for each model that was run here, in the form in which it was run last."""
        runs = _load(self._path).runs
        return {model: self.slowdown(model, form, profile) for model, form in runs if form in profile.weight_rates}

    def _change(self, change: Callable[[_Contents], None]) -> None:
        """Read the file, change what it holds, and write it; others wait meanwhile."""
        with suppress(OSError, Timeout):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock", timeout=_PATIENCE_SECONDS):
                contents = _load(self._path)
                change(contents)
                _store(self._path, contents)


def _load(path: Path) -> _Contents:
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            return _Contents()
        raw: Any = unpackb(path.read_bytes(), strict_map_key=True)
        if raw["version"] != _VERSION:
            return _Contents()
        profiles = {str(key)[:_KEY_CHARS]: MachineProfile.parse(each) for key, each in raw["profiles"].items()}
        runs = {(str(model), str(form)): _seconds(each) for model, form, each in raw["runs"]}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, UnpackException):
        return _Contents()
    return _Contents(profiles, runs)


def _store(path: Path, contents: _Contents) -> None:
    profiles = {key: profile.to_dict() for key, profile in contents.profiles.items()}
    runs = [[model, form, seconds] for (model, form), seconds in contents.runs.items()]
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(cast("bytes", packb({"version": _VERSION, "profiles": profiles, "runs": runs})))
    os.replace(partial, path)  # noqa: PTH105


def _seconds(raw: object) -> float:
    if not isinstance(raw, float) or not 0 < raw < 1:
        raise ValueError(f"a byte takes less than a second, not {raw!r}")
    return raw


def _shorten(kept: dict[Any, Any], most: int) -> None:
    for key in list(kept)[:-most]:
        del kept[key]
