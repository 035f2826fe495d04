"""What layermesh costs where it has nothing to wait for: everything resident, beside transformers' own `generate`.

Both hold the same weights in one process and take turns, on the path that any architecture takes (`fast_path=False`).
`python -m tests.benchmarks.peers.overhead` prints milliseconds per token and writes results/peers_overhead.json.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from layermesh import LayerMesh
from layermesh.settings import OpeningOptions
from tests.benchmarks.peers.commands import parse
from tests.benchmarks.peers.comparison import RESULTS
from tests.benchmarks.peers.machine import describe_machine
from tests.benchmarks.peers.models import small_llama, smollm2_shape
from tests.benchmarks.peers.runners.figures import ClockStreamer, TokenClock

NUM_THREADS = 2
NUM_NEW = 17
PAIRS_A_ROUND = 4
MOST_OVER = 0.03
PROMPT = list(range(5, 17))

Sweep = Callable[[], float]


def universal() -> dict[str, Any]:
    """The options that leave the fast path out; none where there is none to leave out."""
    return {"fast_path": False} if "fast_path" in OpeningOptions.__annotations__ else {}


def ours(mesh: LayerMesh) -> Sweep:
    """Return what answers through layermesh and tells the seconds per token."""

    def sweep() -> float:
        clock = TokenClock()
        with mesh.stream(PROMPT, max_new_tokens=NUM_NEW, temperature=0, ignore_eos=True) as stream:
            for _ in stream:
                clock.tick()
        return per_token(clock)

    return sweep


def theirs(model: Any) -> Sweep:
    """Return what answers through transformers and tells the seconds per token."""
    input_ids = torch.tensor([PROMPT])
    mask = torch.ones_like(input_ids)

    def sweep() -> float:
        streamer = ClockStreamer()
        with torch.inference_mode():
            model.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=NUM_NEW,
                min_new_tokens=NUM_NEW,
                do_sample=False,
                streamer=streamer,
            )
        return per_token(streamer.clock)

    return sweep


def per_token(clock: TokenClock) -> float:
    """The median, because what else the machine does only ever adds."""
    return statistics.median(clock.figures["decode_seconds_per_token"])


def measure(folder: Path, num_pairs: int) -> list[tuple[float, float]]:
    """Return seconds per token of pairs that ran next to each other, whoever went first: (ours, theirs)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with LayerMesh(str(folder), device="cpu", **universal()) as mesh:
        ask, compute = ours(mesh), theirs(model)
        ask(), compute()
        pairs = []
        for number in range(num_pairs):
            if number % 2:
                them, us = compute(), ask()
            else:
                us, them = ask(), compute()
            pairs.append((us, them))
    return pairs


def summarise(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and how much more ours takes in the median pair."""
    over = statistics.median(us / them for us, them in pairs) - 1
    return {
        "model": name,
        "layermesh_seconds": statistics.median(us for us, _ in pairs),
        "transformers_seconds": statistics.median(them for _, them in pairs),
        "over": over,
        "most_over": MOST_OVER,
        "met": over <= MOST_OVER,
        "pairs": pairs,
    }


def main() -> int:
    """Measure, print, write; 1 if it costs more than it may."""
    num_pairs = parse(__doc__).rounds * PAIRS_A_ROUND
    torch.set_num_threads(NUM_THREADS)
    rows = []
    for folder in (small_llama(), smollm2_shape()):
        row = summarise(folder.name, measure(folder, num_pairs))
        rows.append(row)
        print(
            f"{row['model']}: {row['layermesh_seconds'] * 1e3:.1f} ms per token, transformers "
            f"{row['transformers_seconds'] * 1e3:.1f} ms; {row['over']:+.1%} in the median of {num_pairs} pairs, "
            f"at most {MOST_OVER:+.0%}: {'met' if row['met'] else 'MISSED'}",
            flush=True,
        )
    content = {"machine": describe_machine(), "num_threads": NUM_THREADS, "options": universal(), "models": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers_overhead.json").write_text(json.dumps(content, indent=1) + "\n")
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
