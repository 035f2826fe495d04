"""What tests of stages and sweeps share."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.footprint import Footprint, SequenceSize
from layermesh.shared.frames import Frame, SessionId
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.model.definition import ModelDefinition, define_model
from layermesh.shared.residency import LOOK_AHEAD
from layermesh.shared.spans import LayerSpan
from layermesh.worker.buffers import Buffer
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.stage import Stage

NUM_TOKENS = 64
NUM_NEW = 16
SIZE = SequenceSize(NUM_TOKENS, NUM_NEW)
PLENTY = 1 << 30


def open_model(
    folder: Path, dtype: torch.dtype = torch.float32, *, fast_path: bool = False
) -> tuple[ModelDefinition, BlockTable]:
    definition = define_model(folder, dtype)
    return definition, build_block_table(open_checkpoint(folder, folder / "unpacked"), definition, fast_path=fast_path)


def loaded_weights(folder: Path, *, fast_path: bool = False) -> dict[str, torch.Tensor]:
    """The parameters of a model in float32, by name, as its blocks are loaded; whole embedding tables are left on disk."""
    _, table = open_model(folder, fast_path=fast_path)
    loaded: dict[str, torch.Tensor] = {}
    with closing(FileReader()) as files, closing(BlockLoader(files)) as loader:
        for block in (table.rest, *table.layers, *table.heads):
            buffer = Buffer(block.loaded_bytes)
            loader.start(block, buffer).wait()
            loaded |= {name: tensor.clone() for name, tensor in buffer.tensors(block).items()}
    return loaded


def open_stage(folder: Path, *, spare_bytes: int = 0, budget_bytes: int | None = None, fast_path: bool = False) -> Stage:
    """A stage of all layers with room for two of them and `spare_bytes`, or with `budget_bytes` in all."""
    definition, table = open_model(folder, fast_path=fast_path)
    span = LayerSpan(0, definition.num_layers)
    slots = (1 + LOOK_AHEAD) * max(block.loaded_bytes for block in table.layers)
    least = Footprint.of(definition, span, table).working_bytes(SIZE) + slots
    return Stage(definition, table, span, torch.device("cpu"), budget_bytes or least + spare_bytes)


@contextmanager
def opened(folder: Path, *, spare_bytes: int = 0, budget_bytes: int | None = None, fast_path: bool = False) -> Iterator[Stage]:
    """The stage that `open_stage` gives, with room made for the session "first"."""
    stage = open_stage(folder, spare_bytes=spare_bytes, budget_bytes=budget_bytes, fast_path=fast_path)
    try:
        stage.reserve(SessionId("first"), SIZE)
        yield stage
    finally:
        stage.close()


def first_frame(name: str, token_ids: list[int]) -> Frame:
    return Frame(SessionId(name), 0, 0, 0, tuple(token_ids))


def next_frame(frame: Frame, token_id: int) -> Frame:
    return Frame(frame.session, 0, frame.step + 1, frame.position + len(frame.token_ids), (token_id,))


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        os.sched_yield()


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
