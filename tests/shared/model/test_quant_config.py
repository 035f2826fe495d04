import pytest

from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.quant_config import QuantScheme, WeightGroup
from tests.shared.model.quantised_checkpoints import compressed

WHERE = "model/config.json: quantization_config"


@pytest.mark.parametrize(
    ("config", "group"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 64]}, WeightGroup("float", 8, (128, 64))),
        ({"quant_method": "fp8"}, WeightGroup("float", 8)),
        ({"quant_method": "gptq", "bits": 4}, WeightGroup("int", 4, (1, 128))),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, WeightGroup("int", 8, (1, -1))),
        ({"quant_method": "gptq", "bits": 4, "desc_act": True}, WeightGroup("int", 4, (1, 128), is_ordered=False)),
        (compressed(), WeightGroup("int", 8)),
        (compressed(group_size=32), WeightGroup("int", 8, (1, 32))),
        (compressed(type="float", strategy="block", block_structure=[128, 128]), WeightGroup("float", 8, (128, 128))),
        (compressed(strategy="block", block_structure="16x8"), WeightGroup("int", 8, (16, 8))),
        (compressed(num_bits=4, group_size=32, symmetric=False), WeightGroup("int", 4, (1, 32), is_symmetric=False)),
        (compressed(num_bits=4, group_size=32, actorder="group"), WeightGroup("int", 4, (1, 32), is_ordered=False)),
        (compressed(num_bits=4, group_size=32, actorder="weight"), WeightGroup("int", 4, (1, 32))),
    ],
    ids=str,
)
def test_a_group_is_what_the_configuration_says(config, group):
    assert QuantScheme.parse(config, WHERE).groups == (group,)


def test_every_group_of_a_mixed_configuration_is_read():
    config = compressed(type="float", num_bits=8, strategy="channel")
    config["config_groups"] |= {
        "group_1": {"targets": ["re:.*experts.*"], "weights": {"num_bits": 4, "group_size": 32}, "format": "pack-quantized"},
        "group_2": {"targets": ["Attention"], "weights": None},
    }
    scheme = QuantScheme.parse(config | {"format": "mixed-precision"}, WHERE)
    assert scheme.groups == (WeightGroup("float", 8), WeightGroup("int", 4, (1, 32)))


@pytest.mark.parametrize(
    "more",
    [
        {"kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        {"sparsity_config": {}},
        {"sparsity_config": {"format": "dense", "sparsity_structure": "2:4"}},
        {"transform_config": {}},
        {"quantization_status": "compressed", "global_compression_ratio": 1.3, "version": "0.15"},
    ],
    ids=str,
)
def test_what_changes_no_weight_does_no_harm(more):
    assert QuantScheme.parse(compressed() | more, WHERE) == QuantScheme.parse(compressed(), WHERE)


OTHERS = (
    "aqlm", "auto-round", "bitnet", "bitsandbytes", "eetq", "fouroversix", "fp_quant", "higgs", "hqq", "metal",
    "nvfp4", "quanto", "quark", "sinq", "spqr", "torchao", "vptq", "of-next-year",
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "named"),
    [
        *(({"quant_method": method}, method) for method in OTHERS),
        ({"bits": 4}, "4 bits"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*down.*": {}}}, "dynamic"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "bits": 3}, "awq, 3 bits"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
        ({"quant_algo": "FP8_PB_WO"}, "FP8_PB_WO"),
        (compressed() | {"format": "sparse-24-bitmask"}, "sparse-24-bitmask"),
        (compressed() | {"format": "marlin-24"}, "marlin-24"),
        (compressed() | {"format": "mxfp4-pack-quantized"}, "mxfp4-pack-quantized"),
        (compressed() | {"sparsity_config": {"format": "sparse-bitmask"}}, "sparsity_config"),
        (compressed() | {"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        (compressed(strategy="block"), "block_structure"),
        (compressed(strategy="attn_head"), "attn_head"),
        (compressed(type="ternary"), "ternary"),
    ],
    ids=str,
)
def test_other_kinds_are_refused_with_their_name_and_place(config, named):
    with pytest.raises(UnsupportedModelError, match=f"model/config.json: quantization_config.*{named}"):
        QuantScheme.parse(config, WHERE)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [-1, 1.5]}, "weight_block_size"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "awq", "bits": 4, "group_size": "many"}, "group_size"),
        (compressed(strategy="group"), "group_size"),
        (compressed(strategy="block", block_structure="128"), "block_structure"),
        ({"quant_method": "compressed-tensors", "config_groups": ["Linear"]}, "config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": 8}}}, "config_groups"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(config, named):
    with pytest.raises(CheckpointError, match=named):
        QuantScheme.parse(config, WHERE)
