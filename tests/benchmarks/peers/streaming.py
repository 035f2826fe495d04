"""A model that does not fit: 3.1 GB of bfloat16 under 1.7 GB of memory, beside AirLLM and accelerate's disk offload.

`python -m tests.benchmarks.peers.streaming` prints decode rates and writes results/peers_streaming.json.
"""

import json
import subprocess
from pathlib import Path

from tests.benchmarks.peers.cache import models_folder
from tests.benchmarks.peers.commands import conclude, parse
from tests.benchmarks.peers.comparison import Bar, compare
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.environments import ACCELERATE, AIRLLM
from tests.benchmarks.peers.models import qwen2_1_5b
from tests.benchmarks.peers.running import BENCHMARKS, Conditions

CAP_BYTES = 1_700_000_000
HOST_MEMORY = "1270MB"  # the rest of the cap is Python, torch and transformers
ACCELERATE_CPU_BYTES = {"accelerate, 1.0 GB kept": 1_000_000_000, "accelerate, 1.2 GB kept": 1_200_000_000}  # either may win
BARS = (
    Bar("layermesh", "AirLLM", "decode", 8, aim=14),
    *(Bar("layermesh", name, "decode", 2, aim=3) for name in ACCELERATE_CPU_BYTES),
)


def contestants(model: Path) -> list[Contestant]:
    """All of them, each with few tokens enough to wait for."""
    shards = models_folder() / "airllm"
    offload = str(models_folder() / "accelerate-offload")
    airllm = Contestant("AirLLM", "airllm", AIRLLM, model, num_new=4, options={"shards": str(shards)})
    split(airllm, shards)
    return [
        Contestant("layermesh", "layermesh", None, model, num_new=11, options={"host_memory": HOST_MEMORY}),
        airllm,
        *(
            Contestant(name, "accelerate", ACCELERATE, model, num_new=6, options={"cpu_bytes": kept, "offload_folder": offload})
            for name, kept in ACCELERATE_CPU_BYTES.items()
        ),
    ]


def split(airllm: Contestant, shards: Path) -> None:
    """Let AirLLM make its copy of the checkpoint, which does not count."""
    if shards.is_dir():
        return
    unfinished = shards.with_suffix(".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    job = airllm.job(num_threads=2) | {"options": {"shards": str(unfinished), "split_only": True}}
    command = [str(airllm.python), "-m", "peers.runners.airllm", json.dumps(job)]
    subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True)
    unfinished.rename(shards)


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    arguments = parse(__doc__)
    conditions = Conditions(cap_bytes=CAP_BYTES)
    return conclude(compare("streaming", contestants(qwen2_1_5b()), conditions, BARS, arguments.rounds))


if __name__ == "__main__":
    raise SystemExit(main())
