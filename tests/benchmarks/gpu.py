"""Two models that fit no small card, in 4 GB of one: seconds per token against what disk and bus allow.

`python -m tests.benchmarks.gpu` builds random checkpoints of an 8B shape in bfloat16 and of a 70B shape packed to int4, fewer
layers of them where the disk is small, and runs each with its blocks on the host (the bus is the limit) and streaming from
disk. Disk and bus are measured in the same run. It prints a table and writes results/gpu.json, where figures of other models
stay. It needs an NVIDIA card, and keeps to `--minutes`: what no longer fits in is left out, and named. Where a command may take
ten minutes only, say `--models 8B`, then `--models 70B`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
from transformers import LlamaConfig

from layermesh import LayerMesh
from layermesh.shared.units import format_bytes, parse_bytes
from layermesh.worker.buffers import Buffer
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.machine import free_memory
from tests.benchmarks.grown import grow, layer_bytes, other_bytes, write_one_layer

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PROMPT = list(range(5, 17))
WARMING_TOKENS = 5  # after which the processor's rate is known
PACKING_SECONDS = 120  # for a layer of the larger shape, about
DISK_SAMPLE_BYTES = 8 << 30
SPARE_BYTES = 2 << 30  # of the disk, that stay free
EXAMPLE_LAYERS = 2


@dataclass(frozen=True)
class Shape:
    """A model to build: `packed` as int4, or as it is in bfloat16."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    layers: int
    vocab: int
    packed: bool

    @property
    def config(self) -> LlamaConfig:
        """Its sizes as transformers takes them, with 8 heads for keys and values."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=8,
            vocab_size=self.vocab,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )


SHAPES = (
    Shape("8B bfloat16", hidden=4096, intermediate=14336, heads=32, layers=32, vocab=128256, packed=False),
    Shape("70B int4", hidden=8192, intermediate=28672, heads=64, layers=80, vocab=32000, packed=True),
)


@dataclass(frozen=True)
class Row:
    """One run. Bytes are those of one token; the bound is the larger of disk and bus, each by itself."""

    model: str
    layers: int
    asked_layers: int
    device: str
    device_budget_bytes: int
    device_peak_bytes: int
    host_budget_bytes: int
    resident_bytes: int
    disk_bytes: float
    disk_bytes_per_second: float
    bus_bytes: int
    bus_bytes_per_second: float
    host_computed_bytes: int
    host_bytes_per_second: float | None
    seconds_per_token: float

    @property
    def bound_seconds(self) -> float:
        """Seconds per token at the least."""
        return max(self.disk_bytes / self.disk_bytes_per_second, self.bus_bytes / self.bus_bytes_per_second)


class NoTimeLeftError(Exception):
    """What comes next would take longer than there is."""


class Clock:
    """How much of the time is left."""

    def __init__(self, minutes: float) -> None:
        self._ends = time.monotonic() + minutes * 60

    def need(self, seconds: float, what: str) -> None:
        """Raise NoTimeLeftError if `what` takes longer."""
        left = self._ends - time.monotonic()
        if seconds > left:
            raise NoTimeLeftError(f"{what} would take about {seconds:.0f} s, and {left:.0f} s are left")


@contextmanager
def built(shape: Shape, room: Path, clock: Clock) -> Iterator[tuple[Path, int]]:
    """Give a checkpoint of `shape` and the number of its layers, as many as the disk has room for."""
    with tempfile.TemporaryDirectory(prefix="layermesh-gpu-", dir=room) as name:
        folder = Path(name)
        one = write_one_layer(folder / "one", shape.config, torch.bfloat16)
        if shape.packed:
            clock.need(PACKING_SECONDS, f"packing {shape.name}")
            one = packed(one, folder)
            shutil.rmtree(folder / "one")
        free = shutil.disk_usage(folder).free - SPARE_BYTES - other_bytes(one)
        num_layers = min(shape.layers, free // layer_bytes(one))
        if num_layers < EXAMPLE_LAYERS:
            raise SystemExit(f"{room} has room for {num_layers} layers of {shape.name}: give a larger disk with --room.")
        if num_layers < shape.layers:
            print(f"{shape.name}: {num_layers} of {shape.layers} layers, because the disk has no room for more")
        clock.need(num_layers * layer_bytes(one) / 5e8, f"writing {shape.name}")
        began = time.monotonic()
        model = grow(one, folder / "model", num_layers)
        print(f"{shape.name}: {format_bytes(num_layers * layer_bytes(one))} written in {time.monotonic() - began:.0f} s")
        yield model, num_layers


def packed(one: Path, folder: Path) -> Path:
    """Pack a checkpoint to int4, as users do, and return the folder of the pack."""
    os.environ["LAYERMESH_HOME"] = str(folder / "home")
    options = {"device": "cpu", "quantize": "int4"}
    with LayerMesh(str(one), **options) as mesh:
        made = mesh.local.checkpoint.config_dir
    if "quantization_config" not in json.loads((made / "config.json").read_text()):
        raise RuntimeError(f"{made} is not packed")
    return made


def measure_disk(mesh: LayerMesh) -> float:
    """Bytes per second at which the readers fill two buffers in turn with the model's layers, nothing computed."""
    blocks = list(mesh.local.table.layers)
    files = FileReader()
    loader = BlockLoader(files)
    buffers = cycle([Buffer(max(block.loaded_bytes for block in blocks)) for _ in range(2)])
    loadings = []
    began = time.monotonic()
    for block, buffer in zip(blocks, buffers, strict=False):
        if len(loadings) >= 2:
            loadings[-2].wait()
        if files.num_bytes > DISK_SAMPLE_BYTES:
            break
        loadings.append(loader.start(block, buffer))
    for loading in loadings:
        loading.wait()
    elapsed = time.monotonic() - began
    loader.close()
    files.close()
    return files.num_bytes / elapsed


def run(shape: Shape, model: Path, num_layers: int, device: str, budgets: tuple[str, str], num_tokens: int) -> Row:
    """Answer twice under `budgets` for device and host, and return the figures of the second time."""
    settings = {"temperature": 0, "ignore_eos": True}
    with LayerMesh(str(model), device=device, device_memory=budgets[0], host_memory=budgets[1]) as mesh:
        disk_rate = measure_disk(mesh)
        mesh.generate(PROMPT, max_new_tokens=1, **settings)
        assert mesh.local.stage.residency is not None
        if len(mesh.local.stage.residency.on_host) > num_layers / 2:
            mesh.generate(PROMPT, max_new_tokens=WARMING_TOKENS, **settings)
        answer = mesh.generate(PROMPT, max_new_tokens=num_tokens, **settings)
        stage = mesh.local.stage
        plan = stage.residency
        bus_rate = stage.host_layers.bus_rate
        assert plan is not None
        assert bus_rate is not None
        there = stage.host_layers.choose(plan, 1)
        host_computed = sum(block.loaded_bytes for block in plan.blocks if block.name in there)
        return Row(
            model=shape.name,
            layers=num_layers,
            asked_layers=shape.layers,
            device=torch.cuda.get_device_name(device),
            device_budget_bytes=answer.memory.device_budget_bytes or 0,
            device_peak_bytes=answer.memory.device_peak_bytes,
            host_budget_bytes=answer.memory.host_budget_bytes or 0,
            resident_bytes=plan.resident_bytes,
            disk_bytes=answer.stream.bytes_per_token,
            disk_bytes_per_second=disk_rate,
            bus_bytes=plan.bus_bytes - host_computed,
            bus_bytes_per_second=bus_rate,
            host_computed_bytes=host_computed,
            host_bytes_per_second=stage.host_layers.rate,
            seconds_per_token=answer.timings.decode_seconds / (num_tokens - 1),
        )


def show(row: Row) -> None:
    """Print one line."""
    beside = f", {format_bytes(row.host_computed_bytes)} computed on the host" if row.host_computed_bytes else ""
    print(
        f"{row.model}, {row.layers} layers, {format_bytes(row.device_peak_bytes)} of {format_bytes(row.device_budget_bytes)} "
        f"on the card, {format_bytes(row.host_budget_bytes)} on the host: {row.seconds_per_token:.3f} s per token; bound "
        f"{row.bound_seconds:.3f} s ({format_bytes(int(row.disk_bytes))} at {format_bytes(int(row.disk_bytes_per_second))}/s "
        f"from disk, {format_bytes(row.bus_bytes)} at {format_bytes(int(row.bus_bytes_per_second))}/s over the bus{beside}), "
        f"{row.bound_seconds / row.seconds_per_token:.0%} of it reached"
    )


def measure(shape: Shape, options: argparse.Namespace, clock: Clock, record: Callable[[Row], None]) -> None:
    """Build `shape` and run it under each budget of the host; raises NoTimeLeftError."""
    with built(shape, options.room, clock) as (model, num_layers):
        num_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        for host_memory in fitting(options.host_memory):
            clock.need(num_bytes / 1e9 * 2, f"{shape.name} with {host_memory} on the host")
            record(run(shape, model, num_layers, options.device, (options.device_memory, host_memory), options.tokens))


def fitting(budgets: list[str]) -> list[str]:
    """Return budgets of the host no larger than what is free of it now."""
    free = free_memory(torch.device("cpu")).num_bytes
    for budget in budgets:
        if parse_bytes(budget) > free:
            print(f"{format_bytes(free)} instead of {budget} on the host, because no more is free")
    return [str(min(parse_bytes(budget), free)) for budget in budgets]


def main() -> int:
    """Measure, print and write down; 1 where something was left out."""
    options = _options()
    if not torch.cuda.is_available():
        sys.exit("there is no NVIDIA card here, or this torch was built without CUDA: nothing to measure.")
    clock, left_out = Clock(options.minutes), []
    chosen = [shape for shape in SHAPES if not options.models or shape.name.split()[0] in options.models]
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows = [row for row in before if row["model"] not in [shape.name for shape in chosen]]

    def record(row: Row) -> None:
        show(row)
        rows.append(asdict(row) | {"bound_seconds": row.bound_seconds})
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")

    for shape in chosen:
        layers = min(options.layers or shape.layers, shape.layers)
        try:
            measure(replace(shape, layers=layers), options, clock, record)
        except NoTimeLeftError as error:
            left_out.append(f"{error}. Give more --minutes, or fewer --layers.")
        except TypeError as error:
            if "quantize" not in str(error):
                raise
            left_out.append(f"{shape.name}: this version of layermesh packs no models.")
    for sentence in left_out:
        print(f"left out: {sentence}")
    return int(bool(left_out))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=["8B", "70B"], help="which shapes (both)")
    parser.add_argument("--layers", type=int, help="the most layers of each (all)")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--device-memory", default="4GB", help="the budget on the card")
    parser.add_argument("--host-memory", nargs="+", default=["60GB", "4GB"], help="the budgets beside it, one run each")
    parser.add_argument("--tokens", type=int, default=4, help="tokens to generate and time, the first one apart")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long it may take in all")
    parser.add_argument("--room", type=Path, default=Path(tempfile.gettempdir()), help="where to build the checkpoints")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
