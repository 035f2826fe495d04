import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.definition import compute_buffers, define_model, read_config


def test_parameters_take_no_memory(tiny):
    model = define_model(tiny("llama"), torch.float32).model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "deepseek_v3"])
def test_computed_buffers_are_those_of_a_loaded_model(tiny, model_type):
    ours = define_model(tiny(model_type), torch.float32).model
    compute_buffers(ours, frozenset())
    theirs = AutoModelForCausalLM.from_pretrained(tiny(model_type))
    expected, found = dict(theirs.named_non_persistent_buffers()), dict(ours.named_non_persistent_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert torch.equal(found[name], buffer), name


@pytest.mark.parametrize(
    ("model_type", "layers", "head", "lookups"),
    [
        ("llama", "model.layers", "lm_head", ("model.embed_tokens",)),
        ("gpt2", "transformer.h", "lm_head", ("transformer.wte",)),
        ("gpt_neox", "gpt_neox.layers", "lm_head", ("gpt_neox.embed_in",)),
        ("opt", "model.decoder.layers", "lm_head", ("model.decoder.embed_tokens",)),
    ],
)
def test_layers_head_and_tables_are_found(tiny, model_type, layers, head, lookups):
    definition = define_model(tiny(model_type), torch.float32)
    assert (definition.layers_path, definition.head, definition.lookups) == (layers, head, lookups)
    assert (definition.num_layers, definition.vocab_size, definition.context_length) == (4, 128, 256)


@pytest.mark.parametrize(
    ("model_type", "takes"), [("llama", True), ("gemma3_text", True), ("falcon_mamba", False), ("qwen3_next", False)]
)
def test_prompts_go_in_chunks_where_no_layer_keeps_a_state(tiny, model_type, takes):
    assert define_model(tiny(model_type), torch.float32).takes_chunks is takes


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ('{"model_type": "no_such_model"}', UnsupportedModelError, "no_such_model"),
        ('{"model_type": "vit"}', UnsupportedModelError, "vit.*does not generate text"),
        ("{}", UnsupportedModelError, "config.json"),
        ("{", CheckpointError, "config.json"),
        ('{"model_type": "llama", "num_attention_heads": 0}', CheckpointError, "config.json.*ZeroDivisionError"),
        ('{"model_type": "llama", "vocab_size": "many"}', CheckpointError, "config.json.*'vocab_size'"),
        ('{"model_type": "llama", "hidden_act": "no such"}', UnsupportedModelError, "cannot build.*no such"),
        ('{"model_type": "llama", "vocab_size": 9, "pad_token_id": 10}', UnsupportedModelError, "cannot build"),
        (
            '{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 3}}',
            UnsupportedModelError,
            "gptq",
        ),
        (
            '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}',
            UnsupportedModelError,
            "never run",
        ),
    ],
    ids=[
        "unknown",
        "no language model",
        "empty",
        "no JSON",
        "impossible",
        "mistyped",
        "unknown part",
        "contradiction",
        "quantised",
        "remote code",
    ],
)
def test_configurations_that_cannot_be_run_are_refused(tmp_path, config, error, said):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text("raise SystemExit('the repository was executed')")
    with pytest.raises(error, match=said):
        define_model(tmp_path, torch.float32)


def test_auto_map_of_a_known_family_is_not_followed(tiny, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('the repository was executed')")
    assert read_config(tmp_path).model_type == "llama"
    assert type(define_model(tmp_path, torch.float32).model).__module__.startswith("transformers.")


def test_models_that_are_built_at_once_do_not_take_each_others_dtype(tiny):
    dtypes = [torch.bfloat16, torch.float32] * 8
    with ThreadPoolExecutor(8) as pool:
        definitions = list(pool.map(lambda dtype: define_model(tiny("llama"), dtype), dtypes))
    for definition, dtype in zip(definitions, dtypes, strict=True):
        assert {parameter.dtype for parameter in definition.model.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_weights_have_the_form_they_are_multiplied_in(tiny):
    assert define_model(tiny("llama"), torch.bfloat16).weight_form == "bfloat16"
