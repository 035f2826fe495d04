from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from layermesh import LayerMesh
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.definition import define_model
from tests.architectures.tiny import randomise
from tests.running import open_model
from tests.shared.model.quantised_checkpoints import awq, block_fp8, gptq, quantised, row_fp8, tensor_fp8

PROMPT = list(range(5, 21))
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
FORMS = {
    "fp8 blocks": (block_fp8, {"quant_method": "fp8", "weight_block_size": [48, 48]}),
    "fp8 whole": (tensor_fp8, {"quant_method": "fp8", "weight_block_size": None}),
    "fp8 rows": (row_fp8, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "gptq": (gptq, GPTQ | {"desc_act": False}),
    "gptq act order": (partial(gptq, act_order=True), GPTQ | {"desc_act": True}),
    "gptq v2": (partial(gptq, zero_shift=0), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
}


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    randomise(model, 3)
    folder = tmp_path_factory.mktemp("llama") / "llama"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_quantised_checkpoints_answer_as_the_weights_they_stand_for(llama, tmp_path, form):
    quantise, config = FORMS[form]
    packed, dense = quantised(llama, tmp_path, quantise, config)
    answers = []
    for folder in (packed, dense):
        with LayerMesh(str(folder), device="cpu", dtype="float32") as mesh:
            answers.append(mesh.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("form", ["fp8 blocks", "gptq act order", "awq"])
def test_they_can_be_packed(llama, tmp_path, monkeypatch, form):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    packed, dense = quantised(llama, tmp_path, *FORMS[form])
    scores = []
    for folder in (packed, dense):
        with LayerMesh(str(folder), device="cpu", dtype="float32", quantize="int8") as mesh:
            assert mesh.local.definition.packing is not None
            scores.append(mesh.generate(PROMPT, max_new_tokens=4, temperature=0).token_ids)
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ],
    ids=str,
)
def test_other_kinds_are_refused_by_name(llama, tmp_path, config):
    packed, _ = quantised(llama, tmp_path, tensor_fp8, config)
    with pytest.raises(UnsupportedModelError, match=config["quant_method"]):
        define_model(packed, torch.float32)


@pytest.mark.parametrize(("form", "leaf"), [("fp8 blocks", "weight_scale_inv"), ("gptq", "qzeros"), ("awq", "scales")], ids=str)
def test_missing_parts_are_named(llama, tmp_path, form, leaf):
    packed, _ = quantised(llama, tmp_path, *FORMS[form])
    tensors = load_file(packed / "model.safetensors")
    lost = next(name for name in tensors if name.endswith(leaf))
    del tensors[lost]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=lost.rpartition(".")[0]):
        open_model(packed)
