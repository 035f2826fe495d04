import pytest
import torch
from safetensors.torch import load_file

from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from tests.running import loaded_weights, open_model
from tests.shared.model.quantised_checkpoints import (
    FP8_BLOCKS,
    GPTQ,
    MORE_FORMS,
    PER_ROW,
    compressed,
    quantised,
    rewrite_tensors,
)


@pytest.mark.parametrize(
    ("form", "leaf"),
    [
        ("fp8 blocks", "weight_scale_inv"),
        ("gptq", "qzeros"),
        ("gptq act order", "g_idx"),
        ("awq", "scales"),
        ("compressed int8 rows", "weight_scale"),
        ("compressed int8 groups, zeros", "weight_zero_point"),
        ("compressed int4 groups", "weight_scale"),
        ("compressed int4 groups, zeros", "weight_zero_point"),
        ("compressed int4 groups in any order, zeros", "weight_g_idx"),
        ("compressed nvfp4", "weight_global_scale"),
        ("nvfp4 of modelopt", "weight_scale_2"),
    ],
    ids=str,
)
def test_missing_parts_are_named(llama, tmp_path, form, leaf):
    packed, _ = quantised(llama, tmp_path, *MORE_FORMS[form])
    lost = next(name for name in load_file(packed / "model.safetensors") if name.endswith(leaf))
    rewrite_tensors(packed, lambda tensors: tensors.pop(lost))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=lost.rpartition(".")[0]):
        open_model(packed)


@pytest.mark.parametrize(
    ("form", "config"),
    [
        ("fp8 blocks", {"quant_method": "fp8"}),
        ("fp8 blocks", {"quant_method": "fp8", "weight_block_size": [64, 48]}),
        ("fp8 blocks", None),
        ("fp8 blocks, wide", FP8_BLOCKS),
        ("compressed blocks", PER_ROW),
        ("compressed int4 groups", compressed(num_bits=4, group_size=64)),
        ("compressed int4 groups", compressed(num_bits=8, group_size=32)),
        ("gptq", GPTQ | {"group_size": 64}),
        ("gptq", GPTQ | {"bits": 8}),
        ("compressed nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        ("compressed int8 rows", {"quant_method": "fp8"}),
        ("compressed int8 rows", None),
        ("awq", None),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_configuration_does_not_fit_is_refused_by_name(llama, tmp_path, form, config):
    packed, _ = quantised(llama, tmp_path, MORE_FORMS[form][0], config)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=r"_proj"):
        open_model(packed)


@pytest.mark.parametrize("leaf", ["weight_scale", "weight_zero_point"])
@pytest.mark.parametrize("form", ["compressed int4 groups, zeros", "compressed int8 groups, zeros"])
@pytest.mark.parametrize(
    "part", [torch.ones(()), torch.ones(1, dtype=torch.uint8), torch.ones(3, 1, dtype=torch.int32)], ids=str
)
def test_parts_of_another_kind_are_refused_by_name(llama, tmp_path, form, leaf, part):
    packed, _ = quantised(llama, tmp_path, *MORE_FORMS[form])
    rewrite_tensors(packed, lambda tensors: tensors.update({f"model.layers.1.mlp.up_proj.{leaf}": part}))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=r"layers\.1\.mlp\.up_proj"):
        open_model(packed)


def test_a_weight_that_is_there_twice_is_refused(llama, tmp_path):
    packed, _ = quantised(llama, tmp_path, *MORE_FORMS["compressed int4 rows"])
    rewrite_tensors(packed, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.ones(160, 128)}))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight twice"):
        open_model(packed)


def test_a_stored_shape_that_contradicts_the_words_is_found_when_they_are_loaded(llama, tmp_path):
    packed, _ = quantised(llama, tmp_path, *MORE_FORMS["compressed int4 groups"])
    rewrite_tensors(packed, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight_shape"].sub_(1))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_shape"):
        loaded_weights(packed)
