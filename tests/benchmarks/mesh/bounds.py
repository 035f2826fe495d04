"""What was promised of a figure, and how that is said and kept."""

import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.benchmarks.peers.machine import describe_machine

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Bound:
    """`value` is to be at most or at least `bar`."""

    what: str
    value: float
    kind: Literal["at most", "at least"]
    bar: float

    @property
    def met(self) -> bool:
        """Whether it is."""
        return (operator.le if self.kind == "at most" else operator.ge)(self.value, self.bar)

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.3g}, {self.kind} {self.bar:g}: {'met' if self.met else 'MISSED'}"


def conclude(name: str, bounds: Sequence[Bound], **figures: Any) -> int:
    """Print the bounds, write everything to results/mesh_NAME.json, and return 1 where a bound was missed."""
    print("\n".join(map(str, bounds)), flush=True)
    content = {
        "machine": describe_machine(),
        "bounds": [asdict(bound) | {"met": bound.met} for bound in bounds],
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"mesh_{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return int(not all(bound.met for bound in bounds))
