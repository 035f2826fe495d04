"""Layers in pieces: what they consist of, and that a model answers through them as it does whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.model import pieces
from layermesh.shared.model.blocks import PAGE_BYTES
from layermesh.shared.model.pieces import _close_up, split_layer
from layermesh.shared.model.separable import separable_modules
from tests.architectures.runs import answer_greedily, difference, streaming_pipeline
from tests.architectures.tiny import PROMPT, reference
from tests.running import open_model

NUM_TOKENS = 8
FAMILIES = ["llama", "gpt_neox", "qwen2", "gemma3_text", "olmo2"]


@pytest.fixture(autouse=True)
def small_layers_are_divided_too(monkeypatch):
    monkeypatch.setattr(pieces, "LEAST_BYTES", 0)


@pytest.mark.parametrize("fast_path", [False, True], ids=["universal", "lean"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox"])
def test_pieces_have_all_that_the_layer_has(tiny, model_type, fast_path):
    _, table = open_model(tiny(model_type), fast_path=fast_path)
    for block in table.layers:
        core, *others = split_layer(block)
        assert core.is_core
        assert [piece.module for piece in others] == list(block.modules)
        assert sum(piece.stored_bytes for piece in (core, *others)) == block.stored_bytes
        assert {tensor.key for piece in (core, *others) for tensor in piece.tensors} == {t.key for t in block.tensors}
        for piece in (core, *others):
            for before, after in pairwise(piece.tensors):
                assert before.offset + before.num_bytes <= after.offset


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_next"])
def test_layers_that_are_mostly_something_else_stay_whole(tiny, model_type):
    _, table = open_model(tiny(model_type))
    assert any(len(split_layer(block)) == 1 for block in table.layers)


def test_a_small_layer_stays_whole(tiny, monkeypatch):
    monkeypatch.setattr(pieces, "LEAST_BYTES", 1 << 30)
    _, table = open_model(tiny("llama"))
    assert split_layer(table.layers[0]) == (table.layers[0],)


class LooksInside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.called, self.multiplied = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, hidden):
        return torch.nn.functional.linear(self.called(hidden), self.multiplied.weight)


def test_a_linear_layer_whose_weight_is_used_by_others_is_no_piece():
    assert list(separable_modules(LooksInside())) == ["called"]


@given(st.lists(st.tuples(st.integers(1, 3 * PAGE_BYTES), st.integers(0, 2 * PAGE_BYTES)), min_size=1, max_size=6))
def test_tensors_keep_their_place_in_the_page(sizes):
    from layermesh.shared.model.blocks import BlockTensor

    tensors, offset = [], 0
    for number, (num_bytes, gap) in enumerate(sizes):
        offset += gap // 64 * 64
        tensors.append(BlockTensor(str(number), (str(number),), (num_bytes,), torch.uint8, offset))
        offset += -(-num_bytes // 64) * 64
    moved = _close_up(tensors)
    assert all(
        (a.offset - b.offset) % PAGE_BYTES == 0 for a, b in zip(tensors, moved, strict=True) if a.num_bytes >= PAGE_BYTES
    )
    assert all(tensor.offset % 64 == 0 for tensor in moved)
    assert all(a.offset + a.num_bytes <= b.offset for a, b in pairwise(moved))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_in_pieces_answers_as_transformers_does(tiny, model_type):
    length = len(PROMPT) + NUM_TOKENS
    with streaming_pipeline(tiny(model_type), 1, length, len(PROMPT)) as pipeline:
        residency = pipeline._hops[0].residency
        assert any(block.module is not None for block in residency.blocks)
        assert residency.streamed_bytes > 0
        (answer,) = answer_greedily(pipeline, [PROMPT], NUM_TOKENS)
    assert difference(answer, reference(tiny(model_type), PROMPT, NUM_TOKENS)) == ""


def test_sessions_share_pieces_and_lean_layers_come_in_them(tiny):
    folder, length = tiny("llama"), len(PROMPT) + NUM_TOKENS
    prompts = (PROMPT, PROMPT[3:10])
    with streaming_pipeline(folder, 1, length, len(PROMPT), fast_path=True) as pipeline:
        assert any("qkv" in block.name for block in pipeline._hops[0].residency.blocks)
        together = answer_greedily(pipeline, prompts, NUM_TOKENS)
    assert [answer.token_ids for answer in together] == [reference(folder, p, NUM_TOKENS).token_ids for p in prompts]
