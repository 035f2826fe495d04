"""What a look at hidden states costs a hop: microseconds, beside torch's own `isfinite`.

`python -m tests.benchmarks.hidden_states` prints the medians for one token and for a call of a prompt.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from layermesh.shared.hidden_states import is_finite
from layermesh.shared.units import format_bytes

SHAPES = ((1, 1, 4096), (1, 512, 4096))  # of float32
NUM_RUNS = 200


def microseconds(look: Callable[[torch.Tensor], object], values: torch.Tensor) -> float:
    """Return the median of many looks."""
    seconds = []
    for _ in range(NUM_RUNS):
        began = time.perf_counter()
        look(values)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6


def main() -> int:
    """Print a line for each shape."""
    for shape in SHAPES:
        values = torch.randn(shape)
        ours = microseconds(is_finite, values)
        theirs = microseconds(lambda values: bool(torch.isfinite(values).all()), values)
        print(f"{format_bytes(values.nbytes)}: {ours:,.0f} µs, isfinite {theirs:,.0f} µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
