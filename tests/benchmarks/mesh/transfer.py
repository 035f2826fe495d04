"""How fast weights travel to a worker that has none: read, hashed, sent, hashed again, written and flushed, on loopback.

The rate is that of all parts but the last, from the first bytes on to those of the last part, so that every part counts until
it is safe. It goes to a store in memory, which is what the promise is about, and to one on the disk, which may be slower.
`python -m tests.benchmarks.mesh.transfer` prints both beside what sha256 and the disk reach here by themselves, and writes
results/mesh_transfer.json.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.mesh.bounds import Bound, conclude
from tests.benchmarks.mesh.machines import PORT, HostSetting, Mesh
from tests.benchmarks.mesh.models import hundred_megabyte_layers

LEAST_MB_PER_SECOND = 400.0
PREPARE = Path(__file__).with_name("prepare_once.py")
MEMORY = Path("/dev/shm")  # a file system without a disk
LEAST_SHARE = 0.8  # of what the disk writes for one thread, where that is less than promised
NUM_ROUNDS = 3
MIB = 1 << 20


def measure(model: Path, store: Path) -> dict[str, float]:
    """Send `model` to a worker on the coordinator's own host that keeps it in `store`; return MB, seconds and MB/s."""
    with Mesh([]) as mesh, tempfile.TemporaryDirectory(prefix="layermesh-bench-", dir=store) as folder:
        mesh.start_worker(mesh.network.coordinator, HostSetting(host_memory="3GB"), "--store", folder)
        told = mesh.run_python(model.parent, str(PREPARE), f"./{model.name}", f"127.0.0.1:{PORT}")
    return summarise(told)


def summarise(told: Mapping[str, Any]) -> dict[str, float]:
    """Return the rate, and what the rest of making ready took."""
    fetching = [step for step in told["steps"] if step[1].startswith("fetching")]
    last = next(step for step in fetching if step[1] == fetching[-1][1])
    # The first step comes with the first chunk, whose bytes are on their way before the clock starts.
    num_bytes, seconds = last[2] - fetching[0][2], last[0] - fetching[0][0]
    return {
        "megabytes": fetching[-1][3] / 1e6,
        "megabytes_per_second": num_bytes / seconds / 1e6,
        "before_seconds": fetching[0][0] - told["began"],
        "after_seconds": told["ready"] - fetching[-1][0],
        "in_all_seconds": told["ready"] - told["began"],
    }


def hash_rate() -> float:
    """MB/s of one thread that hashes, which both sides have to."""
    data = bytes(64 * MIB)
    began = time.perf_counter()
    hashlib.sha256(data).digest()
    return len(data) / (time.perf_counter() - began) / 1e6


def write_rate(folder: Path, num_bytes: int = 1 << 30) -> float:
    """MB/s of one thread that writes and flushes as many bytes as ten layers have."""
    path, data = folder / "layermesh-bench-write", os.urandom(MIB)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(num_bytes // MIB):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return num_bytes / seconds / 1e6


def describe(row: Mapping[str, float]) -> str:
    """One line about one round."""
    return (
        f"{row['megabytes']:.0f} MB at {row['megabytes_per_second']:.0f} MB/s; {row['before_seconds']:.2f} s before, "
        f"{row['after_seconds']:.2f} s after, {row['in_all_seconds']:.2f} s in all"
    )


def main() -> int:
    """Measure, print, write; 1 if weights travel more slowly than promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help=f"how often they travel ({NUM_ROUNDS})")
    parser.add_argument("--layers", type=int, default=12, help="of 103 MB each (12)")
    arguments = parser.parse_args()
    model = hundred_megabyte_layers(arguments.layers)
    memory = MEMORY if MEMORY.is_dir() else model.parent
    by_themselves = {"sha256": hash_rate(), "writing": write_rate(model.parent)}
    print(f"by themselves: sha256 {by_themselves['sha256']:.0f} MB/s, writing {by_themselves['writing']:.0f} MB/s", flush=True)
    rows: dict[str, list[dict[str, float]]] = {"memory": [], "disk": []}
    for _ in range(arguments.rounds):
        for kind, folder in (("memory", memory), ("disk", model.parent)):
            rows[kind].append(measure(model, folder))
            print(f"  to {kind}: {describe(rows[kind][-1])}", flush=True)
    # What else the machine does only ever takes away.
    best = {kind: max(row["megabytes_per_second"] for row in of_kind) for kind, of_kind in rows.items()}
    least = min(LEAST_MB_PER_SECOND, LEAST_SHARE * by_themselves["writing"])
    bounds = [
        Bound("MB/s to a store in memory, in the best round", best["memory"], "at least", LEAST_MB_PER_SECOND),
        Bound("MB/s to a store on the disk, in the best round", best["disk"], "at least", least),
    ]
    return conclude("transfer", bounds, rounds=rows, by_themselves=by_themselves)


if __name__ == "__main__":
    raise SystemExit(main())
