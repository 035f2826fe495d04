"""A model that fits none of three hosts and fits them together, against one of them that streams it from its disk.

Each host has 45 % of the model's size for everything, page cache and interpreter included. The coordinator is one of the three
and runs the last layers and the head. Both answers come from the same command on the same host, which alone has the whole
checkpoint on its disk; the page cache is emptied before. `python -m tests.benchmarks.mesh.sum_of_parts` prints seconds per
token and writes results/mesh_sum_of_parts.json.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layermesh.shared.units import format_bytes
from tests.benchmarks.mesh.bounds import Bound, conclude
from tests.benchmarks.mesh.machines import HostSetting, Mesh, seconds_per_token
from tests.benchmarks.mesh.models import six_gigabytes
from tests.benchmarks.peers import page_cache
from tests.benchmarks.peers.cache import all_files
from tests.benchmarks.peers.models import weight_files

LEAST_RATIO = 4.0
SHARE = 0.45
NUM_HOSTS = 3
INTERPRETER_BYTES = 420_000_000  # Python, torch, transformers and gRPC, and what passes through the page cache
NUM_NEW_TOGETHER, NUM_NEW_ALONE = 33, 9
NUM_LAYERS = 28


def hosts_for(model: Path) -> HostSetting:
    """Return what each host is given."""
    cap_bytes = round(SHARE * sum(path.stat().st_size for path in weight_files(model)))
    return HostSetting(cap_bytes, f"{(cap_bytes - INTERPRETER_BYTES) // 10**6}MB")


def measure(model: Path, setting: HostSetting) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the answer of one host, and that of three."""
    with Mesh([setting] * (NUM_HOSTS - 1), setting) as mesh:
        page_cache.drop(all_files(model))
        alone = mesh.generate(model, NUM_NEW_ALONE, "--alone")
        together = mesh.generate(model, NUM_NEW_TOGETHER)
    return alone, together


def describe(answer: Mapping[str, Any]) -> str:
    """Say where the model was, and how long a token took."""
    stages = [
        f"{stage['worker']} {stage['start']}-{stage['end']} ({format_bytes(stage['resident_bytes'])} stay, "
        f"{format_bytes(stage['streamed_bytes'])} stream)"
        for stage in answer["plan"]["stages"]
    ]
    return f"{seconds_per_token(answer):.3f} s a token: {', '.join(stages)}"


def main() -> int:
    """Measure, print, write; 1 if three hosts are not as much faster as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often both answer (3)")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help=f"of 200 MB each ({NUM_LAYERS})")
    arguments = parser.parse_args()
    model = six_gigabytes(arguments.layers)
    setting = hosts_for(model)
    rounds = []
    for _ in range(arguments.rounds):
        alone, together = measure(model, setting)
        ratio = seconds_per_token(alone) / seconds_per_token(together)
        rounds.append({"ratio": ratio, "alone": alone, "together": together})
        print(f"  one host: {describe(alone)}\n  three: {describe(together)}\n  ratio {ratio:.1f}", flush=True)
    ratios = sorted(each["ratio"] for each in rounds)
    bound = Bound("times as fast, in the median round", ratios[len(ratios) // 2], "at least", LEAST_RATIO)
    return conclude(
        "sum_of_parts", [bound], setting={"cap_bytes": setting.cap_bytes, "memory": setting.host_memory}, rounds=rounds
    )


if __name__ == "__main__":
    raise SystemExit(main())
