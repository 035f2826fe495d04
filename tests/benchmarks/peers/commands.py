"""What the comparisons' command lines have in common."""

import argparse
from collections.abc import Sequence

from tests.benchmarks.peers.comparison import Verdict

ROUNDS = 3


def parse(description: str | None, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line: `rounds`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each contestant runs ({ROUNDS})")
    return parser.parse_args(arguments)


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Return the exit code: 1 if a bar was missed. What could not be measured is not a miss; the table says so."""
    return int(any(verdict.met is False for verdict in verdicts))
