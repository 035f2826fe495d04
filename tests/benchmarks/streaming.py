"""The engine against the disk: 3.1 GB of bfloat16 with half of it, and with next to nothing, in memory.

`python -m tests.benchmarks.streaming` lets raw reads and runs take turns on a cold file and takes paired ratios:
- decode: seconds per token against streamed bytes over the raw reader's rate (bar: at most bound / 0.90);
- prefill: a prompt of 512 reads each block once, and its first token comes within 1.2 × the slower of reading and computing;
- the plan: predicted seconds per token against what the run then shows (bar: within 20 %), resident too.
It writes results/streaming.json and returns 1 where a bar is missed.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layermesh import LayerMesh
from layermesh.coordinator.answer import Answer
from layermesh.shared.units import format_bytes
from tests.benchmarks.peers.disk import SETTINGS, read_rate
from tests.benchmarks.peers.machine import describe_machine
from tests.benchmarks.peers.models import qwen2_1_5b, weight_files
from tests.benchmarks.peers.page_cache import drop

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
NUM_NEW = 6
LEAST_SHARE = 0.90
MOST_FIRST = 1.2
MOST_OFF = 0.20
SHORT, LONG = list(range(5, 17)), [number % 1000 for number in range(512)]
BUDGETS = {"half resident": "1.75GB", "next to nothing resident": "750MB"}


def ask(mesh: LayerMesh, prompt: Sequence[int], num_new: int = NUM_NEW) -> Answer:
    """Answer without an end."""
    return mesh.generate(prompt, max_new_tokens=num_new, temperature=0, ignore_eos=True)


def decode_seconds(answer: Answer) -> float:
    """Seconds per token after the first."""
    return answer.timings.decode_seconds / (len(answer.token_ids) - 1)


def raw_rate(files: Sequence[Path]) -> float:
    """Bytes per second of the best raw reader, right now."""
    return max(read_rate(files, setting, 0.5)[0] for setting in SETTINGS[:3])


def predict(model: Path, **options: Any) -> float:
    """Seconds per token as `layermesh plan` says."""
    with LayerMesh(str(model), device="cpu", **options) as mesh:
        predicted = mesh.local.plan(measured=True).predicted_seconds_per_token
    assert predicted is not None
    return predicted


def resident(model: Path) -> dict[str, Any]:
    """Everything in memory: what computing alone takes, and how well it is predicted."""
    predicted = [predict(model) for _ in range(3)]
    with LayerMesh(str(model), device="cpu") as mesh:
        ask(mesh, SHORT, 2)
        seconds = statistics.median(decode_seconds(ask(mesh, SHORT, 17)) for _ in range(ROUNDS))
        first = statistics.median(ask(mesh, LONG, 1).timings.time_to_first_token_seconds for _ in range(3))
    return {
        "name": "everything resident",
        "seconds_per_token": seconds,
        "prefill_seconds": first,
        "predicted_seconds_per_token": statistics.median(predicted),
    }


def streaming(model: Path, name: str, budget: str, computing: dict[str, Any]) -> dict[str, Any]:
    """Runs and raw reads in turn, on a file that is not in the page cache."""
    files = weight_files(model)
    drop(files)
    pairs, firsts, predictions = [], [], []
    with LayerMesh(str(model), device="cpu", host_memory=budget) as mesh:
        ask(mesh, LONG, 2)
        stage = ask(mesh, SHORT, 2).plan.stages[0]
        before = raw_rate(files)
        for _ in range(ROUNDS):
            seconds = decode_seconds(ask(mesh, SHORT))
            after = raw_rate(files)
            pairs.append((stage.streamed_bytes / statistics.mean((before, after)), seconds))
            before = after
        for _ in range(3):
            answer = ask(mesh, LONG, 1)
            after = raw_rate(files)
            bound = max(stage.streamed_bytes / statistics.mean((before, after)), computing["prefill_seconds"])
            firsts.append((answer.timings.time_to_first_token_seconds / bound, answer.stream.disk_bytes))
            before = after
    for _ in range(3):
        predicted = predict(model, host_memory=budget)
        with LayerMesh(str(model), device="cpu", host_memory=budget) as mesh:
            ask(mesh, SHORT, 2)
            predictions.append(predicted / decode_seconds(ask(mesh, SHORT)))
    return {
        "name": name,
        "budget": budget,
        "resident_bytes": stage.resident_bytes,
        "streamed_bytes": stage.streamed_bytes,
        "pairs_bound_and_seconds": pairs,
        "share_of_bound": statistics.median(bound / seconds for bound, seconds in pairs),
        "first_token_over_bound": statistics.median(first for first, _ in firsts),
        "prefill_bytes_over_streamed": statistics.median(read for _, read in firsts) / stage.streamed_bytes,
        "predicted_over_measured": predictions,
    }


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    model = qwen2_1_5b()
    whole = resident(model)
    off = whole["predicted_seconds_per_token"] / whole["seconds_per_token"] - 1
    misses = [] if abs(off) <= MOST_OFF else ["prediction, everything resident"]
    print(
        f"everything resident: {whole['seconds_per_token'] * 1e3:.0f} ms per token, predicted {off:+.0%}; "
        f"a prompt of {len(LONG)} in {whole['prefill_seconds']:.2f} s",
        flush=True,
    )
    rows = [whole]
    for name, budget in BUDGETS.items():
        row = streaming(model, name, budget, whole)
        rows.append(row)
        off = statistics.median(row["predicted_over_measured"]) - 1
        print(
            f"{name} ({budget}): {format_bytes(row['streamed_bytes'])} streamed, {row['share_of_bound']:.0%} of the bound; "
            f"first token of a prompt of {len(LONG)} after {row['first_token_over_bound']:.2f} × the bound, "
            f"{row['prefill_bytes_over_streamed']:.3f} × the streamed bytes read; predicted {off:+.0%}",
            flush=True,
        )
        misses += [f"decode, {name}"] * (row["share_of_bound"] < LEAST_SHARE)
        misses += [f"first token, {name}"] * (row["first_token_over_bound"] > MOST_FIRST)
        misses += [f"prediction, {name}"] * (abs(off) > MOST_OFF)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streaming.json").write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
    print(f"missed: {', '.join(misses)}" if misses else "all bars met")
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
