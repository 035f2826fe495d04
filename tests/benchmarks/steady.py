"""Nothing grows: resident set, open files and threads over 200 tokens of decoding, half of the model streaming.

`python -m tests.benchmarks.steady` compares the first and the last quarter and writes results/steady.json; it returns 1 where
memory moved by more than 1 %, or a file or thread came to be.
"""

import json
import statistics
import sys
import threading
from pathlib import Path

import psutil

from layermesh import LayerMesh
from tests.benchmarks.peers.models import small_llama

RESULTS = Path(__file__).parent / "results"
NUM_TOKENS = 200
MOST_CHANGE = 0.01


def main() -> int:
    """Measure, print, write; 1 if something grew."""
    process = psutil.Process()
    sizes, files, threads = [], [], []
    with LayerMesh(str(small_llama()), device="cpu", host_memory="560MB") as mesh:
        mesh.generate(list(range(5, 17)), max_new_tokens=2, temperature=0, ignore_eos=True)
        with mesh.stream(list(range(5, 17)), max_new_tokens=NUM_TOKENS, temperature=0, ignore_eos=True) as stream:
            for _ in stream:
                sizes.append(process.memory_info().rss)
                files.append(process.num_fds())
                threads.append(threading.active_count())
    quarter = NUM_TOKENS // 4
    first, last = statistics.mean(sizes[:quarter]), statistics.mean(sizes[-quarter:])
    change = last / first - 1
    figures = {
        "tokens": NUM_TOKENS,
        "first_quarter_bytes": first,
        "last_quarter_bytes": last,
        "change": change,
        "files": [files[0], max(files)],
        "threads": [threads[0], max(threads)],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "steady.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"{NUM_TOKENS} tokens: {first / 1e6:.1f} MB to {last / 1e6:.1f} MB ({change:+.2%}), "
        f"files {files[0]} to {max(files)}, threads {threads[0]} to {max(threads)}"
    )
    return int(abs(change) > MOST_CHANGE or max(files) > files[0] or max(threads) > threads[0])


if __name__ == "__main__":
    sys.exit(main())
