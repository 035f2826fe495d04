"""All of the mesh's benchmarks, one after the other: `python -m tests.benchmarks.mesh`. Leave the machine alone meanwhile."""

from tests.benchmarks.mesh import hops, predictions, rpc, sum_of_parts, transfer


def main() -> int:
    """Run them all, whatever comes of each; 1 if any missed a bar."""
    return max([benchmark.main() for benchmark in (hops, transfer, sum_of_parts, predictions, rpc)])


if __name__ == "__main__":
    raise SystemExit(main())
