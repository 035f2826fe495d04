"""Layers of packed matrices: that they compute what lean layers do, whole or in pieces."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layermesh.packs import pack_into
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.model import packed, pieces
from layermesh.shared.model.packed_layer import PackedLayer
from layermesh.shared.packing.request import PackRequest
from layermesh.shared.quant.native.kernel import native_kernel
from tests.architectures.runs import answer_greedily, difference, streaming_pipeline
from tests.running import open_model

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
            source = tmp_path_factory.mktemp(family) / "source"
            extra = {"partial_rotary_factor": 0.5, "pad_token_id": None} if family == "phi3" else {}
            config = AutoConfig.for_model(
                family, vocab_size=256, hidden_size=128, intermediate_size=intermediate, num_hidden_layers=2, head_dim=32,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None,
                eos_token_id=None, **extra,
            )  # fmt: skip
            torch.manual_seed(3)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases, which are all alike in a new model
                    parameter.data += 0.2 * torch.randn_like(parameter)
            model.save_pretrained(source)
            checkpoint = open_checkpoint(source, source.parent / "unpacked")
            packs[key] = pack_into(family, checkpoint, PackRequest(4, 32, fused=True), source.parent / "pack", None)
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
