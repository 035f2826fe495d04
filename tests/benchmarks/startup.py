"""How long `layermesh --help` takes: median and largest of ten runs, in milliseconds.

`python -m tests.benchmarks.startup` prints them and writes them to tests/benchmarks/results/startup.json.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_RUNS = 10
PROMISED_MILLISECONDS = 300
RESULTS = Path(__file__).parent / "results" / "startup.json"


def help_milliseconds() -> float:
    """Run `layermesh --help` once in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "layermesh", "--help"], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def main() -> int:
    """Measure, print and write; 1 if the median is above what is promised."""
    runs = [help_milliseconds() for _ in range(NUM_RUNS)]
    median, largest = statistics.median(runs), max(runs)
    print(f"layermesh --help: median {median:.0f} ms, max {largest:.0f} ms of {NUM_RUNS} runs")
    figures = {
        "command": "layermesh --help",
        "runs": NUM_RUNS,
        "median_milliseconds": round(median, 1),
        "max_milliseconds": round(largest, 1),
        "promised_milliseconds": PROMISED_MILLISECONDS,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(median > PROMISED_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
