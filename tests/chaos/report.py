"""What trials came to, and how it is told."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "benchmarks/results/chaos.json"


@dataclass(slots=True)
class Series:
    """Trials of one promise: what became of each, and the seconds that count in it."""

    promise: str
    outcomes: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, outcome: str, seconds: float | None = None) -> None:
        self.outcomes.append(outcome)
        if seconds is not None:
            self.seconds.append(seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "trials": len(self.outcomes),
            "outcomes": dict(Counter(self.outcomes)),
            "seconds": {name: round(percentile(self.seconds, share), 3) for name, share in SHARES} if self.seconds else None,
        }

    def __str__(self) -> str:
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(self.outcomes).items()))
        times = "; ".join(f"{name} {percentile(self.seconds, share):.2f} s" for name, share in SHARES) if self.seconds else ""
        return f"{self.promise}: {len(self.outcomes)} trials: {outcomes}" + (f"; {times}" if times else "")


class Report:
    """All series of a run, which `seed` can replay."""

    def __init__(self, seed: int, *, full: bool) -> None:
        self.seed = seed
        self.full = full
        self._series: dict[str, Series] = {}

    def series(self, promise: str) -> Series:
        return self._series.setdefault(promise, Series(promise))

    def lines(self) -> list[str]:
        return [f"seed {self.seed}", *map(str, self._series.values())]

    def write(self) -> None:
        """Keep the figures of a full run beside those of the benchmarks; of promises that did not run, the earlier ones."""
        known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        for name, series in self._series.items():
            known[name] = {"seed": self.seed, **series.to_json()}
        RESULT.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")


SHARES = (("p50", 0.5), ("p95", 0.95), ("max", 1.0))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
