"""Four bits that do not fit either: a 1.1 GB file under 0.9 GB of memory, interpreter included, beside llama.cpp.

llama.cpp maps the file and lets the kernel choose what stays, which in a cycle longer than the memory is always the wrong
part. `python -m tests.benchmarks.peers.capped` prints decode rates and writes results/peers_capped.json.
"""

from dataclasses import replace

from tests.benchmarks.peers.commands import conclude, parse
from tests.benchmarks.peers.comparison import Bar, compare, describe
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.environments import LLAMA_CPP
from tests.benchmarks.peers.gguf_file import q4_k_m
from tests.benchmarks.peers.models import qwen2_1_5b
from tests.benchmarks.peers.running import Conditions, run

CAP_BYTES = 900_000_000
OURS = {"quantize": "int4", "group_size": 32, "host_memory": "570MB"}  # the rest of the cap is Python, torch and transformers
BARS = (Bar("layermesh", "llama.cpp", "decode", 2.5, aim=5),)


def contestants() -> list[Contestant]:
    """Ours, and llama.cpp without the copy that would not fit."""
    checkpoint = qwen2_1_5b()
    return [
        Contestant("layermesh", "layermesh", None, checkpoint, num_new=17, options=OURS),
        Contestant("llama.cpp", "llama_cpp", LLAMA_CPP, q4_k_m(checkpoint), num_new=9, options={"repack": False}),
    ]


def main() -> int:
    """Measure, print, write; 1 if the bar is missed."""
    arguments = parse(__doc__)
    ours, theirs = contestants()
    print("packing, without a cap and not counted:", flush=True)
    print(describe(run(replace(ours, num_new=2), Conditions(cold=False))), flush=True)
    return conclude(compare("capped", [ours, theirs], Conditions(cap_bytes=CAP_BYTES), BARS, arguments.rounds))


if __name__ == "__main__":
    raise SystemExit(main())
