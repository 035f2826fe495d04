"""How the workers of a mesh are shown: for people in a table, for programs as a dictionary."""

import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from layermesh.coordinator.registry import Registry
from layermesh.coordinator.worker_info import RunningInfo, WorkerInfo
from layermesh.interrupts import check_interrupt
from layermesh.settings import OpeningOptions
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.terminal import note, print_json_line

_WATCH_SECONDS: Final = 2.0
_CLEAR: Final = "\x1b[2J\x1b[H"
_HEADINGS: Final = ("worker", "address", "device", "memory", "disk", "weights", "seen")
_UNKNOWN: Final = "–"
_CHARS: Final = 40  # of a name that somebody else chose
_PROBLEM_CHARS: Final = 400
_WORDS: Final = ("int4", "bfloat16", "float16", "float32")  # of which the first that a machine has stands for its speed
_STORED: Final = 4  # models that are named


def print_status(options: OpeningOptions, *, watch: bool, as_json: bool) -> None:
    """Print who is there; with `watch`, again and again until an interrupt."""
    with Registry(options.get("workers", ()), discover=options.get("discover", True)) as registry:
        while True:
            workers = registry.survey()
            if as_json:
                print_json_line(workers_to_dict(workers))
            else:
                print(f"{_CLEAR if watch and sys.stdout.isatty() else ''}{format_workers(workers)}", flush=True)  # noqa: T201
            if registry.problem is not None:
                note(f"note: {registry.problem}")
            if not watch:
                return
            time.sleep(_WATCH_SECONDS)
            check_interrupt()


def format_workers(workers: Sequence[WorkerInfo]) -> str:
    """Return the table of `workers`: a line for each, and below it what it runs, what it holds and what ails it.

    What workers say of themselves is cut short, and what could disturb a terminal or a line is replaced.
    """
    if not workers:
        return "no workers. Start one on another machine with `layermesh worker`, or name it: --worker HOST:PORT."
    rows = [_HEADINGS, *map(_cells, workers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown = lines[:1]
    for worker, line in zip(workers, lines[1:], strict=True):
        shown += [line, *(f"  {detail}" for detail in _details(worker))]
    return "\n".join(shown)


def workers_to_dict(workers: Sequence[WorkerInfo]) -> dict[str, Any]:
    """Return `workers` in plain types, for `--json`."""
    return {"workers": [_to_dict(worker) for worker in workers]}


def one_line(text: str, most_chars: int = _CHARS) -> str:
    """Return `text` as it may stand in a line of a terminal, whoever wrote it."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    return line if len(line) <= most_chars else f"{line[: most_chars - 1]}…"


def _cells(worker: WorkerInfo) -> tuple[str, ...]:
    seen = worker.last_seen_seconds
    return (
        one_line(worker.name) or _UNKNOWN,
        one_line(worker.address, 64),
        one_line(worker.device) or _UNKNOWN,
        *_speeds(worker.profile),
        _UNKNOWN if seen is None else "now" if seen < 1 else f"{format_seconds(seen)} ago",
    )


def _speeds(profile: MachineProfile | None) -> tuple[str, str, str]:
    if profile is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN
    memory = format_bytes(profile.device_bytes)
    if profile.host_bytes:
        memory = f"{memory} + {format_bytes(profile.host_bytes)} host"
    form = next((word for word in _WORDS if word in profile.weight_rates), None)
    weights = _UNKNOWN if form is None else f"{format_bytes(profile.weight_rates[form])}/s {form}"
    return memory, f"{format_bytes(profile.disk_rate)}/s", weights


def _details(worker: WorkerInfo) -> list[str]:
    details = [f"runs     {_running(each)}" for each in worker.running]
    if worker.stored:
        named = [f"{one_line(each.model)} ({format_bytes(each.num_bytes)})" for each in worker.stored[:_STORED]]
        more = len(worker.stored) - _STORED
        details.append(f"holds    {', '.join(named)}{f' and {more} more' if more > 0 else ''}")
    if worker.problem is not None:
        details.append(f"problem  {one_line(worker.problem, _PROBLEM_CHARS)}")
    return details


def _running(running: RunningInfo) -> str:
    parts = [f"{format_bytes(running.resident_bytes)} in memory"]
    if running.streamed_bytes:
        parts.append(f"{format_bytes(running.streamed_bytes)} streamed")
    if running.seconds_per_token:
        parts.append(f"{format_seconds(running.seconds_per_token)} per token")
    if running.num_sessions:
        parts.append(f"{running.num_sessions} session{'s' if running.num_sessions > 1 else ''}")
    last = running.span.end - 1
    layers = f"layers {running.span.start}–{last}" if len(running.span) > 1 else f"layer {last}"
    return f"{one_line(running.model)} {layers}: {', '.join(parts)}"


def _to_dict(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "name": worker.name,
        "address": worker.address,
        "version": worker.version,
        "software": worker.software,
        "device": worker.device,
        "profile": None if worker.profile is None else worker.profile.to_dict(),
        "running": [_running_to_dict(each) for each in worker.running],
        "stored": [{"model": each.model, "bytes": each.num_bytes} for each in worker.stored],
        "last_seen_seconds": worker.last_seen_seconds,
        "problem": worker.problem,
    }


def _running_to_dict(running: RunningInfo) -> dict[str, Any]:
    return {
        "model": running.model,
        "start": running.span.start,
        "end": running.span.end,
        "resident_bytes": running.resident_bytes,
        "streamed_bytes": running.streamed_bytes,
        "seconds_per_token": running.seconds_per_token or None,
        "num_sessions": running.num_sessions,
    }
