"""What the tests on a card share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.footprint import Footprint
from layermesh.shared.frames import SessionId
from layermesh.shared.residency import LOOK_AHEAD
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from tests.architectures.runs import answer_greedily
from tests.architectures.tiny import Reference
from tests.running import PLENTY, SIZE, open_model

CARD = torch.device("cuda", 0)

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@contextmanager
def on_card(
    folder: Path, *, spare_bytes: int = 0, host_bytes: int = PLENTY, dtype: torch.dtype = torch.float32
) -> Iterator[Stage]:
    """A stage on the card with room for two layers and `spare_bytes` there, and for `host_bytes` on the host."""
    definition, table = open_model(folder, dtype)
    span = LayerSpan(0, definition.num_layers)
    slots = (1 + LOOK_AHEAD) * max(block.loaded_bytes for block in table.layers)
    working = Footprint.of(definition, span, table, "cuda").working_bytes(SIZE, SIZE, SIZE)
    stage = Stage(definition, table, span, CARD, working + slots + spare_bytes, "--device-memory", host_bytes)
    try:
        for name in ("session 0", "session 1", "session 2"):
            stage.reserve(SessionId(name), SIZE)
        yield stage
    finally:
        stage.close()


def answers(stage: Stage, prompts: list[list[int]], num_tokens: int) -> list[Reference]:
    """Let `prompts` share every sweep of `stage`, and forget them afterwards."""
    made = answer_greedily(Pipeline([stage]), prompts, num_tokens)
    for number in range(len(prompts)):
        stage.release(SessionId(f"session {number}"))
    return made


def furthest(ours: Reference, theirs: Reference) -> float:
    """How far the logits of two answers are apart at most."""
    return max(float((a.cpu() - b.cpu()).abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True))
