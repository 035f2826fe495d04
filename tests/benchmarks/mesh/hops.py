"""What a hop costs beside what the layers compute: hidden states of 16 KiB, 1 to 4 workers, veth between them.

A token visits N workers and comes back: N + 1 hops. What it takes in all less what the workers computed is what the pipeline
adds. `python -m tests.benchmarks.mesh.hops` prints milliseconds per hop, as `generate --json` tells them (medians) and from
outside, of the time of all tokens (where the head and the choice of the token count as well), and writes
results/mesh_hops.json.
"""

import argparse
from dataclasses import asdict, dataclass

from tests.benchmarks.mesh.bounds import Bound, conclude
from tests.benchmarks.mesh.machines import HostSetting, Mesh, seconds_per_token
from tests.benchmarks.mesh.models import wide_and_thin

MOST_MILLISECONDS = 1.0
NUM_NEW = 257
MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class HopCost:
    """Seconds per token: in all, computed by the workers, and spent between them by their own account."""

    num_workers: int
    total: float
    computed: float
    between: float

    @property
    def num_hops(self) -> int:
        return self.num_workers + 1

    @property
    def milliseconds(self) -> float:
        """What a hop adds at the median."""
        return self.between / self.num_hops * 1e3

    @property
    def outside_milliseconds(self) -> float:
        """What a hop adds at most, on average: with the head, and with what the coordinator does between two tokens."""
        return (self.total - self.computed) / self.num_hops * 1e3

    def __str__(self) -> str:
        return (
            f"{self.num_workers:>7} {self.total * 1e3:>10.2f} {self.computed * 1e3:>10.2f} {self.milliseconds:>10.3f} "
            f"{self.outside_milliseconds:>10.3f}"
        )


def measure(num_workers: int) -> HopCost:
    """Answer once with so many workers, each with a part of the layers."""
    with Mesh([HostSetting(host_memory="1GB")] * num_workers) as mesh:
        answer = mesh.generate(wide_and_thin(), NUM_NEW, "--spread")
    timings = answer["timings"]
    assert len(timings["hops"]) == num_workers
    waited = sum(hop["waited_seconds"] for hop in timings["hops"])
    return HopCost(
        num_workers,
        seconds_per_token(answer),
        sum(hop["computed_seconds"] for hop in timings["hops"]),
        timings["network_seconds"] + waited,
    )


def main() -> int:
    """Measure, print, write; 1 if a hop adds more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=MOST_WORKERS, help=f"the most that there are ({MOST_WORKERS})")
    print(f"{'workers':>7} {'ms/token':>10} {'computed':>10} {'ms/hop':>10} {'outside':>10}", flush=True)
    costs = []
    for number in range(1, parser.parse_args().workers + 1):
        costs.append(measure(number))
        print(costs[-1], flush=True)
    bounds = [
        Bound(f"ms that each of {cost.num_hops} hops adds", cost.milliseconds, "at most", MOST_MILLISECONDS) for cost in costs
    ]
    return conclude("hops", bounds, costs=[asdict(cost) for cost in costs])


if __name__ == "__main__":
    raise SystemExit(main())
