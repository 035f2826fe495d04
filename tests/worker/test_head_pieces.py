from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from layermesh.shared.frames import Logits
from layermesh.shared.model.blocks import Block
from layermesh.worker.buffers import LoadedTensors
from layermesh.worker.stage import Stage
from layermesh.worker.streaming import Streamer
from tests.running import PLENTY, SIZE, first_frame, next_frame, opened
from tests.shared.packing.packs import build_llama, packed

TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    return packed(build_llama(folder / "llama"), folder / "packed")


def answer(stage: Stage) -> list[torch.Tensor]:
    """The logits of a prompt and of two tokens behind it."""
    frame = first_frame("a", TOKENS)
    stage.reserve(frame.session, SIZE)
    made = []
    for token_id in (9, 2, 6):
        (outcome,) = stage.forward([frame])
        assert isinstance(outcome, Logits)
        made.append(outcome.scores)
        frame = next_frame(frame, token_id)
    return made


def test_packed_pieces_that_stay_are_hung_once(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[str] = []
    hold = Streamer.hold

    def noted(streamer: Streamer, block: Block) -> AbstractContextManager[LoadedTensors]:
        held.append(block.name)
        return hold(streamer, block)

    monkeypatch.setattr(Streamer, "hold", noted)
    with opened(pack, budget_bytes=PLENTY) as stage:
        resident = answer(stage)
        assert stage.residency is not None
        names = [block.name for block in stage.residency.blocks]
    assert sum(name.startswith("head [") for name in names) > 1
    assert held == names
    with opened(pack, spare_bytes=1 << 18) as stage:
        streamed = answer(stage)
        assert stage.streams
    assert all(torch.equal(one, other) for one, other in zip(resident, streamed, strict=True))
