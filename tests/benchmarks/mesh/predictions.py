"""How well seconds per token are known beforehand: alone, and on three unequal workers of which one streams.

`plan --json` says them before anything is computed, and again when real runs have been noted; `generate --json` says them once
the workers have tried their parts. Workers have their weights by then, and every run begins with a cold disk: what has just
been fetched still lies in memory, from where it streams faster than it will later.
`python -m tests.benchmarks.mesh.predictions` prints each beside what was measured, and writes results/mesh_predictions.json.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.mesh.bounds import Bound, conclude
from tests.benchmarks.mesh.machines import HostSetting, Mesh, seconds_per_token
from tests.benchmarks.mesh.models import hundred_megabyte_layers
from tests.benchmarks.peers import page_cache
from tests.benchmarks.peers.cache import all_files

MOST_OFF = 0.25
NUM_NEW = 33
ALL = HostSetting()
UNEQUAL = (HostSetting(2_000_000_000, "1GB"), HostSetting(1_500_000_000, "700MB"), HostSetting(1_000_000_000, "300MB"))


@dataclass(frozen=True, slots=True)
class Case:
    """A mesh, and how it is asked."""

    name: str
    workers: tuple[HostSetting, ...]
    options: tuple[str, ...]
    coordinator: HostSetting = ALL


@dataclass(frozen=True, slots=True)
class Guess:
    """What was said, by whom, and what came of it, in seconds per token."""

    case: str
    by: str
    predicted: float
    measured: float

    @property
    def off(self) -> float:
        """By how much of what was measured it was wrong."""
        return abs(self.predicted / self.measured - 1)

    def __str__(self) -> str:
        return f"{self.case:<20} {self.by:<22} {self.predicted * 1e3:>9.1f} ms {self.measured * 1e3:>9.1f} ms {self.off:>6.0%}"


CASES = (
    Case("alone, in memory", (), ("--alone",)),
    Case("alone, streaming", (), ("--alone",), HostSetting(host_memory="700MB")),
    Case("unequal, as planned", UNEQUAL, (), HostSetting(host_memory="300MB")),
    Case("unequal, all three", UNEQUAL, ("--spread",), HostSetting(host_memory="300MB")),
)


def measure(case: Case, model: Path) -> list[Guess]:
    """Plan, run, plan again and run again; both runs count for what was said before them."""
    with Mesh(case.workers, case.coordinator) as mesh:
        guesses = []
        for when in ("before any run", "after a run"):
            planned = mesh.ask("plan", model, *case.options)["predicted_seconds_per_token"]
            if not guesses:
                mesh.generate(model, 1, *case.options)
            page_cache.drop([*all_files(model), *all_files(mesh.folder)])
            answer = mesh.generate(model, NUM_NEW, *case.options)
            measured = seconds_per_token(answer)
            guesses.append(Guess(case.name, f"plan, {when}", planned, measured))
            said = answer["plan"]["predicted_seconds_per_token"]
            if said is not None:
                guesses.append(Guess(case.name, f"generate, {when}", said, measured))
    return guesses


def bounds(guesses: Sequence[Guess]) -> list[Bound]:
    """What was promised of each."""
    return [Bound(f"{guess.case}: share that {guess.by} was off", guess.off, "at most", MOST_OFF) for guess in guesses]


def main() -> int:
    """Measure, print, write; 1 if a prediction was further off than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="only one of them, by number")
    only = parser.parse_args().case
    model = hundred_megabyte_layers()
    guesses: list[Guess] = []
    print(f"{'':<43} {'predicted':>12} {'measured':>12} {'off':>6}", flush=True)
    for case in CASES if only is None else (CASES[only],):
        found = measure(case, model)
        print("\n".join(map(str, found)), flush=True)
        guesses += found
    return conclude("predictions", bounds(guesses), guesses=[asdict(guess) for guess in guesses])


if __name__ == "__main__":
    raise SystemExit(main())
