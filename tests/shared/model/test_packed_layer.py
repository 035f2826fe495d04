"""Layers of packed matrices: that they compute what lean layers do, whole or in pieces."""

from pathlib import Path

import pytest
import torch

from layermesh.shared.model import packed, pieces
from layermesh.shared.model.packed_layer import PackedLayer
from layermesh.shared.quant.native.kernel import native_kernel
from tests.architectures.runs import answer_greedily, difference, streaming_pipeline
from tests.running import open_model
from tests.shared.packing.packs import packed_family

FAMILIES = ["llama", "qwen2", "qwen3", "phi3"]  # plain, with a bias, with norms of heads, half turned and stored together
NUM_TOKENS = 6
TOLERANCE = 5e-3  # of logits around one, with inputs in 16 bits, or 8 in a long prompt
SHORT = [17, 101, 5, 64, 33, 90, 12, 77, 48, 110, 29, 56]
LONG = [(7 * number) % 250 for number in range(150)]  # many rows at once

pytestmark = pytest.mark.skipif(native_kernel() is None, reason="the kernel in C cannot be built here")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A function that packs a random model of a family."""
    packs: dict[tuple[str, str], Path] = {}

    def make(family: str, intermediate: int = 256) -> Path:
        key = family, str(intermediate)
        if key not in packs:
            packs[key] = packed_family(family, tmp_path_factory.mktemp(family), intermediate_size=intermediate)
        return packs[key]

    return make


def answer(folder: Path, prompt: list[int]):
    with streaming_pipeline(folder, 1, len(prompt) + NUM_TOKENS, len(prompt), fast_path=True) as pipeline:
        return answer_greedily(pipeline, [prompt], NUM_TOKENS)[0]


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_answer_as_lean_layers_do(pack, family, prompt, monkeypatch):
    folder = pack(family)
    assert all(isinstance(layer, PackedLayer) for layer in open_model(folder, fast_path=True)[0].layers)
    ours = answer(folder, prompt)
    monkeypatch.setattr(packed, "can_stand_in", lambda _layer: False)
    assert not any(isinstance(layer, PackedLayer) for layer in open_model(folder, fast_path=True)[0].layers)
    theirs = answer(folder, prompt)
    assert ours.token_ids == theirs.token_ids
    for mine, other in zip(ours.logits, theirs.logits, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=TOLERANCE), float((mine - other).abs().max())


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("intermediate", [256, 160], ids=["gated in the kernel", "gated by torch"])
@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_pieces_have_the_same_bits(pack, family, intermediate, prompt, monkeypatch):
    folder = pack(family, intermediate)
    whole = answer(folder, prompt)
    monkeypatch.setattr(pieces, "LEAST_BYTES", 0)
    monkeypatch.setattr(pieces, "MOST_CORE", 1)
    with streaming_pipeline(folder, 1, len(prompt) + NUM_TOKENS, len(prompt), fast_path=True) as pipeline:
        assert any(block.module is not None for block in pipeline._hops[0].residency.blocks)
        (divided,) = answer_greedily(pipeline, [prompt], NUM_TOKENS)
    assert difference(divided, whole) == ""


def test_layers_of_another_activation_stay_lean(pack):
    definition, _ = open_model(pack("llama"), fast_path=True)
    layer = definition.layers[0]
    assert packed.can_stand_in(layer)
    layer.activation = torch.nn.GELU()
    assert not packed.can_stand_in(layer)


def test_norms_of_another_kind_of_numbers_are_left_to_torch(pack):
    layer = open_model(pack("qwen3"), fast_path=True)[0].layers[0]
    phase = torch.ones(1, 1, 32)
    assert layer._describe(phase) is not None
    assert layer._describe(phase.to(torch.float16)) is None
    layer.q_norm.weight = torch.nn.Parameter(layer.q_norm.weight.to(torch.bfloat16), requires_grad=False)
    layer._heads_as.clear()
    assert layer._describe(phase) is None
