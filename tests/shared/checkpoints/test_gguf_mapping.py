"""Every parameter made of a GGUF file equals, bit for bit, what transformers' own loader ends up with."""

import os
from pathlib import Path

import pytest
import torch
from gguf_models import (
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LLAMA,
    MODELS,
    attention,
    decoder_metadata,
    experts,
    feed_forward,
    whole,
)
from gguf_parameters import meta_model, parameters_of
from gguf_writing import CRAFTED, WRITABLE, read_raw, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from layermesh.shared.checkpoints import map_gguf, open_checkpoint
from layermesh.shared.checkpoints.rows import find_row_moves
from layermesh.shared.errors import CheckpointError

TOKENS = [f"t{number}" for number in range(300)]


def assert_equals_transformers(path: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(path, cache)
    made = parameters_of(checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = dict(reference.named_parameters())
    assert set(made) >= set(expected)
    for name, parameter in expected.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(made[name].view(torch.int32), parameter.detach().contiguous().view(torch.int32)), name


@pytest.mark.usefixtures("unpack_here", "without_accelerate")
@pytest.mark.parametrize(("architecture", "metadata", "shapes"), MODELS.values(), ids=MODELS)
def test_parameters_equal_those_of_transformers(tmp_path, architecture, metadata, shapes):
    encodings = ("Q4_0", "Q6_K", "Q8_0", "Q4_K", "F16", "BF16", "Q4_1")
    path = write_gguf(tmp_path / "tiny.gguf", architecture, metadata, shapes, encodings, TOKENS)
    assert_equals_transformers(path, tmp_path / "cache")


@pytest.mark.usefixtures("unpack_here", "without_accelerate")
@pytest.mark.parametrize("encoding", [*WRITABLE, *CRAFTED])
def test_every_encoding_equals_transformers(tmp_path, encoding):
    path = write_gguf(tmp_path / "tiny.gguf", "llama", *LLAMA, [encoding], TOKENS)
    assert_equals_transformers(path, tmp_path / "cache")


@pytest.mark.usefixtures("without_accelerate")
@pytest.mark.skipif("LAYERMESH_TEST_GGUF" not in os.environ, reason="LAYERMESH_TEST_GGUF names no GGUF file")
def test_a_real_model_equals_transformers(tmp_path):
    assert_equals_transformers(Path(os.environ["LAYERMESH_TEST_GGUF"]).absolute(), tmp_path / "cache")


def permuted_as_llama_cpp_does(weights: torch.Tensor, num_heads: int) -> torch.Tensor:
    halves = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


@pytest.mark.usefixtures("unpack_here")
def test_mixtral_is_llama_with_experts(tmp_path):
    metadata = decoder_metadata(rope__dimension_count=HEAD_DIM, expert_count=EXPERTS, expert_used_count=2)
    path = write_gguf(tmp_path / "tiny.gguf", "llama", metadata, whole(attention() | experts()))
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    model = meta_model(checkpoint)
    made = parameters_of(checkpoint)

    def stored(name: str) -> torch.Tensor:
        tensor = checkpoint.tensors[f"blk.1.{name}.weight"]
        return read_raw(path, tensor.offset, tensor.num_bytes).view(torch.float32).view(tensor.shape)

    assert type(model).__name__ == "MixtralForCausalLM"
    assert (model.config.num_local_experts, model.config.num_experts_per_tok) == (EXPERTS, 2)
    layer = "model.layers.1."
    gate_up = made[layer + "mlp.experts.gate_up_proj"]
    assert gate_up.shape == (EXPERTS, 2 * INTERMEDIATE, HIDDEN)
    assert torch.equal(gate_up[:, :INTERMEDIATE], stored("ffn_gate_exps"))
    assert torch.equal(gate_up[:, INTERMEDIATE:], stored("ffn_up_exps"))
    assert torch.equal(made[layer + "mlp.experts.down_proj"], stored("ffn_down_exps"))
    assert torch.equal(made[layer + "mlp.gate.weight"], stored("ffn_gate_inp"))
    for name, heads in (("q", HEADS), ("k", KV_HEADS)):
        made_projection = made[f"{layer}self_attn.{name}_proj.weight"]
        assert torch.equal(permuted_as_llama_cpp_does(made_projection, heads), stored(f"attn_{name}"))


@pytest.mark.usefixtures("unpack_here")
def test_gemma_stores_its_norms_plus_one(tmp_path):
    metadata = decoder_metadata(attention__key_length=HEAD_DIM)
    path = write_gguf(tmp_path / "tiny.gguf", "gemma", metadata, whole(attention() | feed_forward(), head=False))
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    made = parameters_of(checkpoint)
    norm = checkpoint.tensors["blk.0.attn_norm.weight"]
    stored = read_raw(path, norm.offset, norm.num_bytes).view(torch.float32)
    assert torch.equal(made["model.layers.0.input_layernorm.weight"], stored - 1)
    assert AutoConfig.from_pretrained(checkpoint.config_dir).tie_word_embeddings


@pytest.mark.usefixtures("unpack_here")
def test_plain_groups_are_the_ones_that_need_no_making(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", *MODELS["qwen3moe"])
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    groups = {group.targets[0]: group for group in map_gguf(checkpoint, meta_model(checkpoint))}
    layer = "model.layers.0."
    assert groups["model.embed_tokens.weight"].plain
    assert groups["lm_head.weight"].plain
    assert groups[layer + "mlp.experts.down_proj"].plain
    assert not groups[layer + "mlp.experts.gate_up_proj"].plain
    assert groups[layer + "mlp.experts.gate_up_proj"].sources == (
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_up_exps.weight",
    )


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("model", ["llama", "qwen3moe", "phi3", "gpt2", "lfm2"])
def test_rows_go_where_the_moves_say(tmp_path, model):
    path = write_gguf(tmp_path / "tiny.gguf", *MODELS[model], ["F32"], TOKENS)
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    without: set[str] = set()
    for group in map_gguf(checkpoint, meta_model(checkpoint)):
        moves = find_row_moves(group.convert, group.source_shapes, dict(zip(group.targets, group.shapes, strict=True)))
        if moves is None:
            without |= {group.targets[0].split(".", 3)[-1] for shape in group.shapes if len(shape) > 1}
            continue
        decoded = [torch.randn(shape) for shape in group.source_shapes]
        by_rows = torch.empty(group.shapes[0])
        for move in moves:
            source = decoded[move.source].view(-1, by_rows.shape[-1])
            by_rows.view(-1, by_rows.shape[-1])[move.rows] = source[move.first : move.last]
        assert torch.equal(by_rows, group.convert(decoded)[group.targets[0]])
    transposed = {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert without == (transposed if model == "gpt2" else set())


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blk.1.ffn_up.weight": None}, "lacks what 1 parameters"),
        ({"blk.1.ffn_up.weight": (INTERMEDIATE, HIDDEN * 2)}, "blk.1.ffn_up.weight of shape"),
        ({"blk.0.attn_q.weight": (HIDDEN // 2, HIDDEN * 2)}, "model has"),
    ],
    ids=["missing", "wrong shape", "wrong shape with the right number of values"],
)
def test_files_that_do_not_fit_the_model_are_refused(tmp_path, changed, message):
    shapes = {name: shape for name, shape in (LLAMA[1] | changed).items() if shape is not None}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA[0], shapes)
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    with pytest.raises(CheckpointError, match=message):
        parameters_of(checkpoint)
