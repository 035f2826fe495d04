"""Everything in memory, in four bits, beside llama.cpp on the same cores: a token at a time, and a prompt of 512.

`python -m tests.benchmarks.peers.resident` prints rates and writes results/peers_resident.json (a random model in the shape
of Qwen2-1.5B) and results/peers_resident_small.json (the default model, SmolLM2-135M).
"""

from pathlib import Path

from layermesh.shared.library import CATALOG, DEFAULT_MODEL
from layermesh.shared.library.fetching import fetch
from tests.benchmarks.peers.commands import conclude, parse
from tests.benchmarks.peers.comparison import Bar, compare
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.environments import LLAMA_CPP
from tests.benchmarks.peers.gguf_file import q4_k_m
from tests.benchmarks.peers.models import qwen2_1_5b
from tests.benchmarks.peers.running import Conditions

NUM_PROMPT, NUM_NEW, NUM_WARMUP = 512, 65, 9
INT4 = {"quantize": "int4", "group_size": 32}
REPACKED, AS_MAPPED = "llama.cpp", "llama.cpp without repacking"  # the first is its default, either may be the faster


def bars(decode: float, prefill: float | None) -> list[Bar]:
    """What is demanded against llama.cpp, however it is set."""
    rates = {"decode": decode} | ({"prefill": prefill} if prefill is not None else {})
    return [Bar("layermesh", theirs, rate, least) for rate, least in rates.items() for theirs in (REPACKED, AS_MAPPED)]


def contestants(checkpoint: Path, gguf: Path) -> list[Contestant]:
    """Ours with `checkpoint`, llama.cpp with `gguf`."""

    def contestant(name: str, runner: str, model: Path, **options: object) -> Contestant:
        environment = LLAMA_CPP if runner == "llama_cpp" else None
        return Contestant(name, runner, environment, model, NUM_NEW, NUM_PROMPT, NUM_WARMUP, options)

    return [
        contestant("layermesh", "layermesh", checkpoint, **INT4),
        contestant(REPACKED, "llama_cpp", gguf, repack=True),
        contestant(AS_MAPPED, "llama_cpp", gguf, repack=False),
    ]


def main() -> int:
    """Measure both models, print, write; 1 if a bar is missed."""
    arguments = parse(__doc__)
    conditions = Conditions(cold=False)
    checkpoint, small = qwen2_1_5b(), fetch(CATALOG[DEFAULT_MODEL])
    print("a random model in the shape of Qwen2-1.5B: int4 beside Q4_K_M", flush=True)
    large = contestants(checkpoint, q4_k_m(checkpoint))
    verdicts = compare("resident", large, conditions, bars(0.8, 1.5), arguments.rounds)
    print("SmolLM2-135M: the same Q4_1 file", flush=True)
    verdicts += compare("resident_small", contestants(small, small), conditions, bars(0.5, None), arguments.rounds)
    return conclude(verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
