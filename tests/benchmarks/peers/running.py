"""Run one contestant once: cold page cache, capped memory, pinned to as many cores as it has threads, the disk measured."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.peers import page_cache
from tests.benchmarks.peers.cache import all_files, models_folder
from tests.benchmarks.peers.cgroups import Group, capped, find_controller
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.disk import disk_rate
from tests.benchmarks.peers.models import weight_files

BENCHMARKS = Path(__file__).parents[1]
LAUNCH = Path(__file__).with_name("launch.py")
LONGEST_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all contestants of one comparison are given. `cap_bytes` counts the interpreter and the page cache."""

    num_threads: int = 2
    cap_bytes: int | None = None
    cold: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it. `figures` is the runner's last line; `problem` says why there are none.

    `others_percent` is how busy the processor was with other things just before; more than a few percent, and the figures
    are not worth much.
    """

    contestant: str
    figures: Mapping[str, Any]
    problem: str | None
    group_peak_bytes: int | None
    page_cache: str
    others_percent: float
    disk_before: Mapping[str, Any] | None
    disk_after: Mapping[str, Any] | None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first token; None without figures."""
        seconds = self.figures.get("decode_seconds_per_token")
        return len(seconds) / sum(seconds) if seconds else None

    @property
    def prefill_rate(self) -> float | None:
        """Tokens of the prompt per second; None without figures."""
        return self.figures["num_prompt"] / self.figures["prefill_seconds"] if "prefill_seconds" in self.figures else None


def run(contestant: Contestant, conditions: Conditions) -> Run:
    """Run it in a process of its own and wait for it."""
    python = contestant.python
    files = weight_files(contestant.model)
    before = _disk(files) if conditions.cold else None
    cache = page_cache.drop(all_files(models_folder())) if conditions.cold else "warm"
    others = psutil.cpu_percent(interval=0.5)
    with capped(conditions.cap_bytes, find_controller()) as group:
        done = _start(contestant, python, conditions, group)
        peak = group.peak_bytes if group else None
    figures, problem = _read(done)
    after = _disk(files) if conditions.cold else None
    return Run(contestant.name, figures | {"num_prompt": contestant.num_prompt}, problem, peak, cache, others, before, after)


def _disk(files: list[Path]) -> dict[str, Any]:
    return asdict(disk_rate(files))


def _start(
    contestant: Contestant, python: Path, conditions: Conditions, group: Group | None
) -> subprocess.CompletedProcess[str] | None:
    """Return the finished process; None if it took too long."""
    job = json.dumps(contestant.job(conditions.num_threads))
    threads = str(conditions.num_threads)
    launch = [sys.executable, str(LAUNCH), str(group.folder) if group else "", threads]
    command = [*launch, str(python), "-m", f"peers.runners.{contestant.runner}", job]
    environ = os.environ | {
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "LAYERMESH_HOME": str(models_folder() / "layermesh"),  # what is packed lies where it is dropped from the page cache
    }
    try:
        return subprocess.run(
            command, cwd=BENCHMARKS, env=environ, capture_output=True, text=True, check=False, timeout=LONGEST_SECONDS
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _read(done: subprocess.CompletedProcess[str] | None) -> tuple[dict[str, Any], str | None]:
    if done is None:
        return {}, f"no end after {LONGEST_SECONDS} s"
    if done.returncode != 0:
        last_words = done.stderr.strip().splitlines()[-1:] or [""]
        killed = " (killed: over the memory cap?)" if done.returncode == -9 else ""
        return {}, f"exit code {done.returncode}{killed}: {last_words[0][:300]}"
    figures = json.loads(done.stdout.splitlines()[-1])
    return ({}, figures["skipped"]) if "skipped" in figures else (figures, None)
