"""Checkpoints in MXFP4: the values and the answers of the model that transformers dequantises, or an error by name."""

import json

import pytest
import torch
from gpt_oss_models import MXFP4, PROMPT, continued, loaded, save_mxfp4, untrained
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from layermesh import LayerMesh
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from tests.architectures.tiny import build
from tests.running import open_model

EXPERTS = "model.layers.2.mlp.experts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_mxfp4(tmp_path_factory.mktemp("gpt-oss"))


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, "60MB"), (torch.bfloat16, "100MB")], ids=str)
def test_answers_equal_those_of_the_dequantised_model(folder, tmp_path, dtype, least):
    reference = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True), dtype=dtype)
    made = loaded(folder, tmp_path, dtype)
    for name, parameter in reference.named_parameters():
        if ".layers." in name:
            assert torch.equal(made[name], parameter.to(made[name].dtype)), name
    expected = continued(reference.eval())
    for memory in (None, least):
        with LayerMesh(str(folder), device="cpu", dtype=str(dtype)[6:], alone=True, host_memory=memory) as mesh:
            assert list(mesh.generate(PROMPT, max_new_tokens=8, temperature=0).token_ids) == expected


def test_packing_it_is_refused_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    with pytest.raises(UnsupportedModelError, match="GptOssExperts"):
        LayerMesh(str(folder), device="cpu", alone=True, quantize="int4")


def test_a_finetune_without_quantised_experts_runs(tmp_path):
    """As tools leave it that dequantise and forget the configuration."""
    model = untrained()
    model.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"quantization_config": MXFP4}))
    made = loaded(tmp_path, tmp_path, torch.float32)
    assert torch.equal(made[f"{EXPERTS}.down_proj"], model.state_dict()[f"{EXPERTS}.down_proj"])


def changed(folder, to, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (to / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / "model.safetensors")
    return to


DOWN = f"{EXPERTS}.down_proj"
BLOCKS, SCALES = f"{DOWN}_blocks", f"{DOWN}_scales"


def put(name, alter):
    return lambda tensors: tensors.update({name: alter(tensors.get(name))})


def lose(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def shorten(tensors):
    tensors.update({name: tensors[name][:, :32] for name in (BLOCKS, SCALES)})


BROKEN = {
    "no scales": (lose(SCALES), "down_proj_blocks and not .*down_proj_scales"),
    "no blocks": (lose(BLOCKS), "down_proj_scales and not .*down_proj_blocks"),
    "neither": (lose(SCALES, BLOCKS), rf"lacks tensors.*{DOWN}"),
    "both forms": (put(DOWN, lambda _: torch.ones(4, 96, 64)), "down_proj_blocks and .*down_proj too"),
    "scales of other groups": (put(SCALES, lambda scales: scales[..., :2]), "down_proj_scales as"),
    "scales of one for all": (put(SCALES, lambda _: torch.ones(1, dtype=torch.uint8)), "down_proj_scales as"),
    "scales in float": (put(SCALES, lambda scales: scales.float()), "down_proj_scales as F32"),
    "blocks of 8": (put(BLOCKS, lambda blocks: blocks.unflatten(-1, (2, 8)).flatten(2, 3)), "down_proj_blocks as"),
    "blocks in words": (put(BLOCKS, lambda blocks: blocks.int()), "down_proj_blocks as I32"),
    "too few rows": (shorten, r"down_proj in model\.safetensors has the shape \(4, 96, 32\)"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_parts_that_do_not_fit_are_named(folder, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        open_model(changed(folder, tmp_path, change))


def test_a_scale_that_is_no_number_is_named_when_it_is_read(folder, tmp_path):
    path = changed(folder, tmp_path, lambda tensors: tensors[f"{EXPERTS}.gate_up_proj_scales"].view(-1)[-1:].fill_(255))
    with pytest.raises(CheckpointError, match=rf"{EXPERTS}\.gate_up_proj_scales in model\.safetensors has a scale of 255"):
        loaded(path, tmp_path, torch.float32)


def test_mxfp4_without_a_configuration_is_not_half_a_model(folder, tmp_path):
    path = changed(folder, tmp_path, lambda _: None)
    told = json.loads((path / "config.json").read_text())
    del told["quantization_config"]
    (path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UnsupportedModelError, match=r"stores .*experts\.down_proj_blocks \(U8\) for .*experts\.down_proj"):
        open_model(path)


@pytest.mark.parametrize(
    ("model_type", "ending"),
    [
        ("llama", "q_proj.weight"),
        ("mixtral", "experts.0.w1.weight"),
        ("qwen3_moe", "experts.1.down_proj.weight"),
        ("llama", "lm_head.weight"),
    ],
    ids=["dense", "an expert of mixtral's", "an expert that is fused", "a head"],
)
def test_mxfp4_in_other_places_is_refused_by_name(tmp_path, model_type, ending):
    folder = build(model_type, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith(ending))
    rows, columns = tensors.pop(name).shape
    tensors[f"{name}_blocks"] = torch.zeros(rows, -(-columns // 32), 16, dtype=torch.uint8)
    tensors[f"{name}_scales"] = torch.full((rows, -(-columns // 32)), 127, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": MXFP4}))
    with pytest.raises((UnsupportedModelError, CheckpointError), match=name.replace(".", r"\.")):
        open_model(folder)
