"""A 4-bit model split over hosts, everything resident, beside llama.cpp's RPC backend on the same hosts.

A random model in the shape of Qwen2-1.5B, int4 in groups of 32 beside Q4_K_M; as many threads everywhere as the machine has
cores, since one host computes at a time. 0 servers: the coordinator alone. Up to 3: all layers on the servers, an equal part on
each (llama.cpp divides them itself, by the memory it sees, which is the same for all). llama.cpp is measured by its own
llama-bench, which makes no text. What is compared is the median of rounds in which both took turns.
`python -m tests.benchmarks.mesh.rpc` prints tok/s and milliseconds that are lost a hop, and writes results/mesh_rpc.json.
"""

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.mesh.bounds import Bound, conclude
from tests.benchmarks.mesh.llama_tools import llama_tools
from tests.benchmarks.mesh.machines import LONGEST_SECONDS, HostSetting, Mesh, seconds_per_token
from tests.benchmarks.mesh.models import int4_folder
from tests.benchmarks.peers.gguf_file import q4_k_m
from tests.benchmarks.peers.models import qwen2_1_5b
from tests.mesh.hosts import Host, Network
from tests.mesh.waiting import wait_until

LEAST_RATIO = 1.2
MOST_SERVERS = 3
NUM_NEW = 65
RPC_PORT = 50052
START_SECONDS = 20.0
Rates = Mapping[int, Sequence[float]]


def ours(num_servers: int, model: Path) -> float:
    """Tokens per second of layermesh."""
    with Mesh([HostSetting(host_memory="2GB")] * num_servers) as mesh:
        answer = mesh.generate(model, NUM_NEW, "--spread" if num_servers else "--alone")
    return 1 / seconds_per_token(answer)


def theirs(num_servers: int, tools: Path, model: Path) -> float:
    """Tokens per second of llama.cpp."""
    threads = str(os.cpu_count() or 1)
    with Network(num_servers) as network:
        for host in network.hosts:
            _start_server(host, tools, threads)
        servers = ",".join(f"{host.address}:{RPC_PORT}" for host in network.hosts)
        command = [
            tools / "llama-bench",
            "-m",
            model,
            "-t",
            threads,
            "-p",
            "0",
            "-n",
            str(NUM_NEW - 1),
            "-r",
            "1",
            "-o",
            "json",
        ]
        command += ["--rpc", servers, "-ngl", "99"] if servers else []
        process = network.coordinator.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        written, complaints = process.communicate(timeout=LONGEST_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(f"llama-bench ended with {process.returncode}: {complaints[-2000:]}")
    (row,) = json.loads(written)
    return float(row["avg_ts"])


def _start_server(host: Host, tools: Path, threads: str) -> None:
    command = [tools / "ggml-rpc-server", "-t", threads, "-H", host.address, "-p", str(RPC_PORT)]
    host.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listening = ["ss", "-ltnH", f"sport = :{RPC_PORT}"]
    wait_until(lambda: str(RPC_PORT) in host.run(listening), START_SECONDS)


def lost_milliseconds(rates: Rates, num_servers: int) -> float:
    """What a hop costs: the time of a token on so many servers less that of one machine, by the hops there are."""
    alone, split = (1 / statistics.median(rates[number]) for number in (0, num_servers))
    return (split - alone) / (num_servers + 1) * 1e3


def table(rates: Mapping[str, Rates]) -> list[str]:
    """Medians, one line for each number of servers."""
    lines = [f"{'servers':>7}  {'':<10} {'tok/s':>7} {'ms lost a hop':>14}"]
    for number in range(len(rates["layermesh"])):
        for name, of_one in rates.items():
            lost = f"{lost_milliseconds(of_one, number):>14.2f}" if number else ""
            lines.append(f"{number:>7}  {name:<10} {statistics.median(of_one[number]):>7.1f} {lost}")
    return lines


def main() -> int:
    """Measure, print, write; 1 if ours is not as much faster as promised with all servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--servers", type=int, default=MOST_SERVERS, help=f"the most that there are ({MOST_SERVERS})")
    arguments = parser.parse_args()
    tools, packed, gguf = llama_tools(), int4_folder(qwen2_1_5b()), q4_k_m(qwen2_1_5b())
    numbers = range(arguments.servers + 1)
    rates: dict[str, dict[int, list[float]]] = {name: {number: [] for number in numbers} for name in ("layermesh", "llama.cpp")}
    for _ in range(arguments.rounds):
        for number in numbers:
            rates["layermesh"][number].append(ours(number, packed))
            rates["llama.cpp"][number].append(theirs(number, tools, gguf))
            last = ", ".join(f"{name} {of_one[number][-1]:.1f}" for name, of_one in rates.items())
            print(f"  {number} servers, tok/s: {last}", flush=True)
    print("\n".join(table(rates)), flush=True)
    pairs = zip(rates["layermesh"][arguments.servers], rates["llama.cpp"][arguments.servers], strict=True)
    ratio = statistics.median(us / them for us, them in pairs)
    bound = Bound(f"times llama.cpp's tok/s with {arguments.servers} servers", ratio, "at least", LEAST_RATIO)
    return conclude("rpc", [bound], rates=rates)


if __name__ == "__main__":
    raise SystemExit(main())
