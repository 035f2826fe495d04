"""How well reading hides behind computing: seconds per sweep against what reading and computing take by themselves.

`python -m tests.benchmarks.streaming` runs a 0.9 GB float32 model with everything resident, with half of it, and with next to
nothing, each time against the slower of the two: computing alone (everything resident) and reading the streamed blocks alone
(the same readers, nothing computed). Runs and raw reads take turns; medians are printed and written to results/streaming.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from layermesh import LayerMesh
from layermesh.shared.units import format_bytes
from layermesh.worker.buffers import Buffer
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from tests.benchmarks.models import build_llama

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
NUM_TOKENS = 9
PROMPT = list(range(5, 17))


def read_alone(mesh: LayerMesh) -> float:
    """Seconds to load all streamed blocks, one behind the other, into two buffers in turn."""
    residency = mesh.local.stage.residency
    assert residency is not None
    files = FileReader()
    loader = BlockLoader(files)
    buffers = [Buffer(residency.slot_bytes) for _ in range(2)]
    began = time.monotonic()
    loadings = []
    for number, block in enumerate(residency.streamed):
        if number >= len(buffers):
            loadings[number - len(buffers)].wait()
        loadings.append(loader.start(block, buffers[number % len(buffers)]))
    for loading in loadings:
        loading.wait()
    elapsed = time.monotonic() - began
    loader.close()
    files.close()
    return elapsed


def sweep_seconds(mesh: LayerMesh) -> float:
    """Seconds per token of decoding."""
    answer = mesh.generate(PROMPT, max_new_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    return answer.timings.decode_seconds / (NUM_TOKENS - 1)


def main() -> None:
    """Measure, print a table and write it down."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="layermesh-bench-") as folder:
        model = build_llama(Path(folder) / "model", hidden=1024, layers=16, vocab=32000, dtype=torch.float32)
        with LayerMesh(str(model), device="cpu") as mesh:
            sweep_seconds(mesh)
            computing = statistics.median(sweep_seconds(mesh) for _ in range(ROUNDS))
        print(f"everything resident: {computing * 1e3:.0f} ms per token")
        for name, budget in (("half resident", "560MB"), ("next to nothing resident", "160MB")):
            with LayerMesh(str(model), device="cpu", host_memory=budget) as mesh:
                sweep_seconds(mesh)
                pairs = [(sweep_seconds(mesh), read_alone(mesh)) for _ in range(ROUNDS)]
                plan = mesh.local.plan(measured=True)
                assert plan.predicted_seconds_per_token is not None
                sweep = statistics.median(pair[0] for pair in pairs)
                reading = statistics.median(pair[1] for pair in pairs)
                row = {
                    "name": name,
                    "budget": budget,
                    "streamed_bytes": plan.stages[0].streamed_bytes,
                    "seconds_per_token": sweep,
                    "reading_alone_seconds": reading,
                    "computing_alone_seconds": computing,
                    "share_of_bound": max(reading, computing) / sweep,
                    "predicted_seconds_per_token": plan.predicted_seconds_per_token,
                }
            rows.append(row)
            print(
                f"{name} ({budget}): {sweep * 1e3:.0f} ms per token, {format_bytes(row['streamed_bytes'])} streamed; reading "
                f"alone {reading * 1e3:.0f} ms, so {row['share_of_bound']:.0%} of the bound; predicted "
                f"{row['predicted_seconds_per_token'] * 1e3:.0f} ms"
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streaming.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
