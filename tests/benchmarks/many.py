"""What sharing sweeps brings: many prompts together against the same prompts one after the other, from a cold disk.

`python -m tests.benchmarks.many [float32|bfloat16]` streams a model of 600 million parameters, 2.4 GB unless it is bfloat16,
through half of that for 16 prompts of 4 to 19 tokens, once one after the other and once in the same sweeps. Before every
sweep the system is told to forget the model's files. It checks that every answer is the same, prints both rates and writes
results/many.json; it ends with 1 where together is less than 8 times as fast or an answer differs.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from layermesh import Answer, LayerMesh
from layermesh.shared.model.blocks import Block
from layermesh.shared.units import format_bytes
from tests.benchmarks.models import build_llama

RESULTS = Path(__file__).parent / "results" / "many.json"
PROMISED_RATIO = 8.0
BUDGET_PARAMETERS = 300_000_000  # what there is room for: the layer at hand, the next one, and what is beside them
NUM_TOKENS = 6
PROMPTS = [[5 + (7 * index + 3 * i) % 500 for i in range(4 + index)] for index in range(16)]


def drop_from_cache(folder: Path) -> Callable[[Block], None]:
    """Return a watcher that has the system forget the files in `folder` whenever a sweep begins."""

    def watch(block: Block) -> None:
        if block.layer == 0:
            for path in folder.glob("*.safetensors"):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return watch


def timed(run: Callable[[], list[Answer]]) -> tuple[list[Answer], float]:
    """Return the answers and the seconds that they took."""
    began = time.monotonic()
    answers = run()
    return answers, time.monotonic() - began


def measure(model: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Run the prompts both ways and compare."""
    budget_bytes = BUDGET_PARAMETERS * dtype.itemsize
    settings: Any = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    with LayerMesh(str(model), device="cpu", host_memory=budget_bytes) as mesh:
        mesh.local.stage.watcher = drop_from_cache(model)
        mesh.generate(PROMPTS[0], max_new_tokens=1)  # kernels are compiled and files opened
        one_by_one, seconds_alone = timed(lambda: [mesh.generate(prompt, **settings) for prompt in PROMPTS])
        together, seconds_together = timed(lambda: mesh.generate_many(PROMPTS, **settings))
    num_tokens = sum(len(answer.token_ids) for answer in together)
    (stage,) = together[0].plan.stages
    return {
        "prompts": len(PROMPTS),
        "tokens": num_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "budget_bytes": budget_bytes,
        "streamed_bytes": stage.streamed_bytes,
        "resident_bytes": stage.resident_bytes,
        "peak_bytes": together[-1].memory.host_peak_bytes,
        "alone_tokens_per_second": num_tokens / seconds_alone,
        "together_tokens_per_second": num_tokens / seconds_together,
        "ratio": seconds_alone / seconds_together,
        "promised_ratio": PROMISED_RATIO,
        "alone_sweep_seconds": seconds_alone / sum(answer.stream.sweeps for answer in one_by_one),
        "together_sweep_seconds": seconds_together / max(answer.stream.sweeps for answer in together),
        "same_answers": [answer.token_ids for answer in one_by_one] == [answer.token_ids for answer in together],
    }


def main(dtype_name: str = "float32") -> int:
    """Measure, print and write; 1 if less than what is promised came out."""
    dtype = getattr(torch, dtype_name)
    with tempfile.TemporaryDirectory(prefix="layermesh-bench-") as folder:
        model = build_llama(Path(folder) / "model", hidden=3072, layers=6, vocab=32000, dtype=dtype)
        os.sync()  # pages that are not on the disk yet cannot be dropped
        row = measure(model, dtype)
    alone, together = row["alone_tokens_per_second"], row["together_tokens_per_second"]
    print(
        f"{row['prompts']} prompts, {row['dtype']}, {format_bytes(row['streamed_bytes'])} a sweep: {alone:.2f} tok/s one after "
        f"the other, {together:.2f} together, {row['ratio']:.1f} times as many; "
        f"{'the same answers' if row['same_answers'] else 'OTHER ANSWERS'}"
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(row, indent=1) + "\n")
    return int(row["ratio"] < PROMISED_RATIO or not row["same_answers"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
