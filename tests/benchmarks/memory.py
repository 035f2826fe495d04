"""How much memory a run really takes, seen from outside: its peak resident set less that of a tiny model.

`python -m tests.benchmarks.memory` measures a 0.9 GB float32 model and its bfloat16 half under several budgets, and writes
results/memory.json.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from layermesh.shared.units import format_bytes, parse_bytes
from tests.benchmarks.models import build_llama

RESULTS = Path(__file__).parent / "results"
PEAK = str(Path(__file__).parent / "peak.py")


@dataclass(frozen=True)
class Measurement:
    """One run: what it was allowed, what it took above a tiny model, and what it says of itself."""

    model: str
    budget_bytes: int
    prompt_tokens: int
    taken_bytes: int
    reported_bytes: int
    resident_bytes: int
    streamed_bytes: int
    tokens_per_second: float | None


def measure(model: Path, tiny: Path, budget: str, num_prompt: int, num_new: int = 4) -> Measurement:
    """Run `model` and `tiny` in processes of their own and compare their peaks."""
    baseline, _ = _peak(tiny, budget, num_prompt, num_new)
    peak, answer = _peak(model, budget, num_prompt, num_new)
    (stage,) = answer["plan"]["stages"]
    return Measurement(
        model=model.name,
        budget_bytes=parse_bytes(budget),
        prompt_tokens=num_prompt,
        taken_bytes=peak - baseline,
        reported_bytes=answer["memory"]["host_peak_bytes"],
        resident_bytes=stage["resident_bytes"],
        streamed_bytes=stage["streamed_bytes"],
        tokens_per_second=answer["timings"]["decode_tokens_per_second"],
    )


def _peak(model: Path, budget: str, num_prompt: int, num_new: int) -> tuple[int, dict[str, Any]]:
    """Return the peak resident set in bytes and the answer of one `layermesh generate`."""
    prompt_ids = ",".join(str(5 + i % 100) for i in range(num_prompt))
    command = [sys.executable, "-m", "layermesh", "generate", "--json", "-q", "--ignore-eos", "--device", "cpu"]
    command += ["-m", str(model), "--host-memory", budget, "--prompt-ids", prompt_ids, "-n", str(num_new)]
    run = subprocess.run([sys.executable, PEAK, *command], capture_output=True, text=True, check=False)
    *messages, peak = run.stderr.splitlines()
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}: {' '.join(messages)}")
    return int(peak), json.loads(run.stdout)


def main() -> None:
    """Measure, print a table and write it down."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="layermesh-bench-") as folder:
        tiny = build_llama(Path(folder) / "tiny", hidden=64, layers=2, vocab=512)
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            model = build_llama(Path(folder) / name, hidden=1024, layers=16, vocab=32000, dtype=dtype)
            for budget in ("180MB", "300MB", "600MB"):
                for num_prompt in (12, 500):
                    row = measure(model, tiny, budget, num_prompt)
                    rows.append(row)
                    print(
                        f"{row.model:<9} {budget:>6} allowed, prompt {num_prompt:>3}: "
                        f"{format_bytes(row.taken_bytes):>7} taken, {format_bytes(row.reported_bytes):>7} reported, "
                        f"{format_bytes(row.resident_bytes):>7} resident, "
                        f"{row.tokens_per_second or 0:.2f} tok/s"
                    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
