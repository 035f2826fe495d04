"""Whatever a configuration says, nothing that is stored for a weight may be left out in silence."""

import pytest
import torch

from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from tests.running import loaded_weights, open_model
from tests.shared.model.quantised_checkpoints import quantised, rewrite_config, rewrite_tensors, row_fp8, tensor_fp8

PATH = "model.layers.1.mlp.up_proj"
BEYOND = "model.layers.77.mlp.up_proj"
FP8 = torch.float8_e4m3fn
CONFIGS = {
    "no configuration": {},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
    "elsewhere": {"quantization": {"quant_algo": "FP8"}},
}


@pytest.fixture
def folder(tiny, tmp_path):
    return quantised(tiny("llama"), tmp_path, lambda weight: ({"weight": weight}, weight), None)[0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "leaf",
    [
        "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "weight_zero_point", "weight_g_idx",
        "weight_shape", "weight_packed", "weight_offset", "scales", "scale", "scale_inv", "qzeros", "g_idx", "SCB",
        "pre_quant_scale", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight_scales",
        "weight.quant_state.bitsandbytes__nf4", "weight_quantizer._amax", "input_quantizer._pre_quant_scale", "weight_blocks",
        "weight:_weight_qdata", "weight._scale",
    ],
)  # fmt: skip
def test_a_part_that_nothing_applies_is_refused_by_name(folder, config, leaf):
    rewrite_tensors(folder, lambda tensors: tensors.update({f"{PATH}.{leaf}": torch.ones(1)}))
    rewrite_config(folder, CONFIGS[config])
    with pytest.raises(UnsupportedModelError, match=leaf.replace(".", r"\.")):
        open_model(folder)


@pytest.mark.parametrize(
    "leaf",
    [
        "input_scale", "input_scale_inv", "input_zero_point", "input_global_scale", "output_scale", "activation_scale",
        "input_amax", "input_quantizer._amax", "output_quantizer._amax", "qscale_act",
    ],
)  # fmt: skip
def test_scales_of_inputs_and_outputs_do_no_harm(folder, leaf):
    before = loaded_weights(folder)
    rewrite_tensors(folder, lambda tensors: tensors.update({f"{PATH}.{leaf}": torch.full((1,), 7.0)}))
    after = loaded_weights(folder)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("leaf", ["k_scale", "v_scale", "q_scale", "kv_scale", "k_proj.k_scale", "k_proj.output_scale"])
def test_scales_of_caches_do_no_harm(folder, leaf):
    rewrite_tensors(folder, lambda tensors: tensors.update({f"model.layers.1.self_attn.{leaf}": torch.full((1,), 7.0)}))
    open_model(folder)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "dtype", [FP8, torch.float8_e5m2, torch.float8_e8m0fnu, torch.int8, torch.uint8, torch.int32, torch.int64], ids=str
)
def test_numbers_without_a_scale_are_refused_by_name(folder, config, dtype):
    rewrite_tensors(folder, lambda tensors: tensors.update({f"{PATH}.weight": tensors[f"{PATH}.weight"].abs().to(dtype)}))
    rewrite_config(folder, CONFIGS[config])
    with pytest.raises(
        CheckpointError if "e4m3" in str(dtype) or "e5m2" in str(dtype) else UnsupportedModelError, match="up_proj"
    ):
        open_model(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_this_holds_for_every_parameter(folder, name):
    rewrite_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(FP8)}))
    with pytest.raises(CheckpointError, match=name):
        open_model(folder)


def test_two_scales_of_one_weight_are_refused(tiny, tmp_path):
    packed, _ = quantised(tiny("llama"), tmp_path, row_fp8, None)
    rewrite_tensors(packed, lambda tensors: tensors.update({f"{PATH}.weight_scale_inv": torch.ones(1)}))
    with pytest.raises(UnsupportedModelError, match=rf"{PATH}\.weight_scale_inv"):
        open_model(packed)


def test_the_scales_of_an_activation_are_not_passed_over(folder):
    """AWQ divides the output of some activations by scales that it keeps in their module."""
    rewrite_tensors(folder, lambda tensors: tensors.update({"model.layers.1.mlp.act_fn.scales": torch.ones(8)}))
    with pytest.raises(UnsupportedModelError, match=r"mlp\.act_fn\.scales"):
        open_model(folder)


@pytest.mark.parametrize(
    "extra",
    [
        {f"{BEYOND}.weight": torch.ones(4, 4).to(FP8)},
        {f"{BEYOND}.weight": torch.ones(4, 4).to(FP8), f"{BEYOND}.weight_scale": torch.ones(3, 3)},
        {f"{BEYOND}.weight_packed": torch.ones(4, 4, dtype=torch.int32)},
        {"mtp.0.scales": torch.ones(3)},
        {"logit_scale": torch.ones(())},
    ],
    ids=["values", "values and a scale that does not fit", "words", "scales", "no part of a weight"],
)  # fmt: skip
def test_what_the_model_does_not_compute_with_may_be_stored_in_any_way(folder, extra):
    rewrite_tensors(folder, lambda tensors: tensors.update(extra))
    open_model(folder)


def test_vision_towers_may_be_stored_in_any_way(tiny, tmp_path):
    packed, _ = quantised(tiny("gemma3"), tmp_path, lambda weight: ({"weight": weight}, weight), None)

    def shrink(tensors):
        name = next(name for name in tensors if "vision_tower" in name and tensors[name].ndim == 2)
        tensors[name], tensors[f"{name}_scale"] = tensors[name].to(FP8), torch.ones(3, 3)

    rewrite_tensors(packed, shrink)
    open_model(packed)


def test_experts_that_lack_their_scales_are_named(tiny, tmp_path):
    packed, _ = quantised(tiny("llama4_text"), tmp_path, tensor_fp8, {"quant_method": "fbgemm_fp8"})
    rewrite_tensors(
        packed, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith("gate_up_proj_scale")]
    )
    with pytest.raises(CheckpointError, match=r"experts\.gate_up_proj"):
        open_model(packed)


@pytest.mark.parametrize("leaf", ["blocks", "scales", "scale_2", "packed", "zero_point"])
def test_parts_of_fused_experts_that_nothing_applies_are_refused(tiny, tmp_path, leaf):
    packed, _ = quantised(tiny("llama4_text"), tmp_path, lambda weight: ({"weight": weight}, weight), None)

    def add(tensors):
        name = next(name for name in tensors if name.endswith("experts.down_proj"))
        tensors[f"{name}_{leaf}"] = torch.ones(4)

    rewrite_tensors(packed, add)
    with pytest.raises(UnsupportedModelError, match=f"down_proj_{leaf}"):
        open_model(packed)
