"""All comparisons, one after the other: `python -m tests.benchmarks.peers [--rounds N]`. Leave the machine alone meanwhile."""

from tests.benchmarks.peers import capped, overhead, resident, streaming


def main() -> int:
    """Run them all, whatever comes of each; 1 if any missed a bar."""
    return max([comparison.main() for comparison in (streaming, capped, resident, overhead)])


if __name__ == "__main__":
    raise SystemExit(main())
