import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from layermesh import LayerMesh
from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.model.definition import define_model
from tests.running import loaded_weights
from tests.shared.model.quantised_checkpoints import (
    FORMS,
    FP8_BLOCKS,
    MORE_FORMS,
    block_fp8,
    column_fp8,
    compressed,
    quantised,
    rewrite_config,
    rewrite_tensors,
    row_fp8,
    tensor_fp8,
)

PROMPT = list(range(5, 21))


def assert_loaded_alike(packed, dense, *, fast_path=False):
    found, wanted = (loaded_weights(folder, fast_path=fast_path) for folder in (packed, dense))
    split = {name: tensor for name, tensor in wanted.items() if ".joined." in name}
    assert split or found.keys() == wanted.keys()
    for name, tensor in found.items():
        expected = wanted[name] if name in wanted else joined_part(name, wanted)
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def joined_part(name, wanted):
    """What is stored quantised is not joined with its neighbours: return its rows of the matrix that the others are in."""
    path, _, member = name.removesuffix(".weight").rpartition(".")
    starts = {"q_proj": 0, "k_proj": 128, "v_proj": 192, "gate_proj": 0, "up_proj": 160}
    sizes = {"q_proj": 128, "k_proj": 64, "v_proj": 64, "gate_proj": 160, "up_proj": 160}
    return wanted[f"{path}.joined.weight"][starts[member] : starts[member] + sizes[member]]


@pytest.mark.parametrize("form", FORMS)
def test_quantised_checkpoints_answer_as_the_weights_they_stand_for(llama, tmp_path, form):
    quantise, config = FORMS[form]
    packed, dense = quantised(llama, tmp_path, quantise, config)
    answers = []
    for folder in (packed, dense):
        with LayerMesh(str(folder), device="cpu", dtype="float32") as mesh:
            answers.append(mesh.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("form", MORE_FORMS)
def test_weights_are_what_the_parts_stand_for(llama, tmp_path, form):
    assert_loaded_alike(*quantised(llama, tmp_path, *MORE_FORMS[form]))


@pytest.mark.parametrize("form", ["fp8 blocks", "fp8 blocks, tall", "compressed int4 groups, zeros"])
def test_the_fast_path_gets_the_same_weights(llama, tmp_path, form):
    assert_loaded_alike(*quantised(llama, tmp_path, *MORE_FORMS[form]), fast_path=True)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "mixtral", "qwen3_moe", "glm4_moe", "phi3", "qwen3_next"])
@pytest.mark.parametrize("form", ["fp8 blocks", "compressed int8 rows"])
def test_matrices_that_are_fused_or_renamed_keep_their_scales(tiny, tmp_path, model_type, form):
    quantise, config = MORE_FORMS[form]
    quantise = partial(block_fp8, sides=(20, 13)) if form == "fp8 blocks" else quantise
    config = FP8_BLOCKS | {"weight_block_size": [20, 13]} if form == "fp8 blocks" else config
    assert_loaded_alike(*quantised(tiny(model_type), tmp_path, quantise, config))


@pytest.mark.parametrize(
    ("quantise", "config"),
    [
        (tensor_fp8, {"quant_method": "fp8"}),
        (column_fp8, {"quant_method": "fbgemm_fp8"}),
        (row_fp8, {"quant_method": "fp8"}),
    ],
    ids=["expert", "column", "row"],
)
def test_fused_experts_are_scaled(tiny, tmp_path, quantise, config):
    packed, dense = quantised(tiny("llama4_text"), tmp_path, row_fp8, config, experts=quantise)
    assert any(tensor.ndim == 3 and tensor.itemsize == 1 for tensor in load_file(packed / "model.safetensors").values())
    assert_loaded_alike(packed, dense)


def test_fused_experts_are_scaled_in_blocks(tiny, tmp_path):
    config = FP8_BLOCKS | {"weight_block_size": [20, 13]}
    assert_loaded_alike(*quantised(tiny("llama4_text"), tmp_path, partial(block_fp8, sides=(20, 13)), config))


def test_scales_of_outputs_that_lie_as_rows_are_taken_as_fbgemm_writes_them(tiny, tmp_path):
    def lay_down(tensors):
        for name in list(tensors):
            if name.endswith("experts.down_proj_scale"):
                tensors[name] = tensors[name].transpose(1, 2)  # [experts, out, 1], as transformers' own class has it

    config = {"quant_method": "fbgemm_fp8"}
    packed, dense = quantised(tiny("llama4_text"), tmp_path, row_fp8, config, experts=column_fp8)
    rewrite_tensors(packed, lay_down)
    assert_loaded_alike(packed, dense)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": FP8_BLOCKS | {"modules_to_not_convert": ["model.layers.0.mlp.up_proj", "lm_head"]}},
        {"quantization_config": FP8_BLOCKS | {"modules_to_not_convert": []}},
        {"compression_config": compressed(type="float", strategy="block", block_structure=[48, 48])},
        {"compression_config": {k: v for k, v in compressed(type="float", strategy="block", block_structure=[48, 48]).items()
                                if k != "quant_method"}},
    ],
    ids=["listed as not converted", "not listed", "under its old name", "under its old name, without a method"],
)  # fmt: skip
def test_what_is_stored_counts_wherever_the_configuration_stands(llama, tmp_path, changes):
    def keep(tensors):  # one matrix of the last layer stays as it is, and is in no list of those that do
        del tensors[f"{path}.weight_scale_inv"]
        tensors[f"{path}.weight"] = load_file(dense / "model.safetensors")[f"{path}.weight"]

    path = "model.layers.1.mlp.up_proj"
    packed, dense = quantised(llama, tmp_path, block_fp8, None)
    rewrite_tensors(packed, keep)
    rewrite_config(packed, changes)
    assert_loaded_alike(packed, dense)


def test_the_text_model_of_a_larger_one_may_have_its_own_configuration(tiny, tmp_path):
    packed, dense = quantised(tiny("gemma3"), tmp_path, block_fp8, None)
    text = json.loads((packed / "config.json").read_text())["text_config"]
    rewrite_config(packed, {"text_config": text | {"quantization_config": FP8_BLOCKS}})
    assert_loaded_alike(packed, dense)


@pytest.mark.parametrize("form", ["fp8 blocks", "gptq act order", "awq", "compressed int4 groups, zeros", "compressed nvfp4"])
def test_they_can_be_packed(llama, tmp_path, monkeypatch, form):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    packed, dense = quantised(llama, tmp_path, *MORE_FORMS[form])
    scores = []
    for folder in (packed, dense):
        with LayerMesh(str(folder), device="cpu", dtype="float32", quantize="int8") as mesh:
            assert mesh.local.definition.packing is not None
            scores.append(mesh.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids)
    assert scores[0] == scores[1]


def test_two_configurations_that_contradict_each_other_are_refused(llama, tmp_path):
    packed, _ = quantised(llama, tmp_path, block_fp8, FP8_BLOCKS)
    rewrite_config(packed, {"compression_config": FP8_BLOCKS | {"weight_block_size": [64, 64]}})
    with pytest.raises(UnsupportedModelError, match="contradict"):
        define_model(packed, torch.float32)


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_embeddings_and_heads_in_fp8_are_scaled(llama, tmp_path, tied):
    names = ["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"]
    packed, dense = quantised(llama, tmp_path, row_fp8, None)

    def shrink(tensors):
        for name in names:
            scale = tensors[name].abs().max() / 448
            tensors[name], tensors[f"{name}_scale"] = (tensors[name] / scale).to(torch.float8_e4m3fn), scale.reshape(1)

    def widen(tensors):
        for name in names:
            scale = tensors[name].abs().max() / 448
            tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn).float() * scale

    for folder, change in ((packed, shrink), (dense, widen)):
        rewrite_config(folder, {"tie_word_embeddings": tied})
        rewrite_tensors(folder, lambda tensors: tied and tensors.pop("lm_head.weight"))
        rewrite_tensors(folder, change)
    answers = []
    for folder in (packed, dense):
        with LayerMesh(str(folder), device="cpu", dtype="float32") as mesh:
            answers.append(mesh.generate(PROMPT, max_new_tokens=6, temperature=0).token_ids)
    assert answers[0] == answers[1]
