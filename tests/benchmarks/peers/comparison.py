"""Let contestants take turns, and say what came out: medians, and ratios of runs that were next to each other."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.machine import describe_machine
from tests.benchmarks.peers.running import Conditions, Run, run

RESULTS = Path(__file__).parents[1] / "results"
BUSY_PERCENT = 10.0  # of all cores together
Rate = Callable[[Run], float | None]


@dataclass(frozen=True, slots=True)
class Bar:
    """`ours` is to be at least `least` times as fast as `theirs` in what `rate` names; `aim` is what we would like."""

    ours: str
    theirs: str
    rate: str
    least: float
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a bar was met: the ratio of each round, and their median (None where one of the two has no figures)."""

    bar: Bar
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None else self.ratio >= self.bar.least

    def __str__(self) -> str:
        what = f"{self.bar.rate}: {self.bar.ours} / {self.bar.theirs}"
        if self.ratio is None:
            return f"{what}: not measured (bar {self.bar.least:g})"
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        return f"{what} = {self.ratio:.2f} ({spread}), bar {self.bar.least:g}: {'met' if self.met else 'MISSED'}"


RATES: Mapping[str, Rate] = {"decode": lambda run: run.decode_rate, "prefill": lambda run: run.prefill_rate}


def take_turns(contestants: Sequence[Contestant], conditions: Conditions, rounds: int) -> list[list[Run]]:
    """Run A B C, A B C, ...; return the runs of each round. One that has no figures the first time is not asked again."""
    out: set[str] = set()
    history = []
    for _ in range(rounds):
        history.append([])
        for contestant in contestants:
            if contestant.name in out:
                continue
            result = run(contestant, conditions)
            print(describe(result), flush=True)
            history[-1].append(result)
            if result.problem is not None:
                out.add(contestant.name)
    return history


def judge(bar: Bar, history: Sequence[Sequence[Run]]) -> Verdict:
    """Return the ratios of the rounds in which both sides have figures."""
    ratios = []
    for runs in history:
        rates = {run.contestant: RATES[bar.rate](run) for run in runs}
        ours, theirs = rates.get(bar.ours), rates.get(bar.theirs)
        if ours and theirs:
            ratios.append(ours / theirs)
    return Verdict(bar, tuple(ratios))


def describe(run: Run) -> str:
    """One line about one run."""
    if run.problem is not None:
        return f"  {run.contestant}: {run.problem}"
    disk = [f"{rate['bytes_per_second'] / 1e9:.2f}" for rate in (run.disk_before, run.disk_after) if rate]
    parts = [f"{run.decode_rate or 0:.3f} tok/s", f"prompt {run.figures['prefill_seconds']:.2f} s"]
    parts += [f"load {run.figures['load_seconds']:.1f} s", f"disk {' and '.join(disk)} GB/s"] if disk else []
    parts += [f"the machine was {run.others_percent:.0f} % busy with other things"] if run.others_percent > BUSY_PERCENT else []
    return f"  {run.contestant}: {', '.join(parts)}"


def table(contestants: Sequence[Contestant], history: Sequence[Sequence[Run]]) -> list[str]:
    """Medians of each contestant, one line each under a heading."""
    lines = [f"{'':<34} {'decode tok/s':>12} {'prompt tok/s':>12} {'peak RSS MB':>12} {'runs':>5}"]
    for contestant in contestants:
        runs = [run for runs in history for run in runs if run.contestant == contestant.name and run.problem is None]
        figures = medians(runs)
        cells = [f"{figures[name]:>12.2f}" if figures[name] is not None else f"{'-':>12}" for name in ("decode", "prefill")]
        peak = figures["peak_rss_bytes"]
        cells.append(f"{peak / 1e6:>12.0f}" if peak is not None else f"{'-':>12}")
        lines.append(f"{contestant.name:<34} {' '.join(cells)} {len(runs):>5}")
    return lines


def medians(runs: Sequence[Run]) -> dict[str, float | None]:
    """The middle of each figure over the runs; None where no run has it."""
    found: dict[str, list[float | None]] = {name: [rate(run) for run in runs] for name, rate in RATES.items()}
    found["peak_rss_bytes"] = [run.figures.get("peak_rss_bytes") for run in runs]
    return {name: _median(values) for name, values in found.items()}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def compare(
    name: str, contestants: Sequence[Contestant], conditions: Conditions, bars: Sequence[Bar], rounds: int
) -> list[Verdict]:
    """Run, print a table and the verdicts, write results/peers_NAME.json; return the verdicts."""
    history = take_turns(contestants, conditions, rounds)
    verdicts = [judge(bar, history) for bar in bars]
    print("\n".join([*table(contestants, history), *map(str, verdicts)]), flush=True)
    write(name, conditions, history, verdicts)
    return verdicts


def write(name: str, conditions: Conditions, history: Sequence[Sequence[Run]], verdicts: Sequence[Verdict]) -> None:
    """Write everything that was measured, and where."""
    content: dict[str, Any] = {
        "machine": describe_machine(),
        "conditions": asdict(conditions),
        "verdicts": [asdict(verdict) | {"ratio": verdict.ratio, "met": verdict.met} for verdict in verdicts],
        "rounds": [[asdict(run) | {"decode_tokens_per_second": run.decode_rate} for run in runs] for runs in history],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"peers_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
