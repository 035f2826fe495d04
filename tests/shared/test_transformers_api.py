"""Each thing that layermesh uses of transformers' inside, looked at in the release that is installed."""

import ast
import inspect
import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Cache, DynamicCache, LlamaConfig, MambaConfig

from layermesh.shared import transformers_api
from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.transformers_api import (
    CACHE_ARGUMENTS,
    CACHE_NAMES,
    MODULES,
    dtype_plan,
    ignored_when_missing,
    ignored_when_unexpected,
    initialize_buffers,
    is_causal_lm,
    keeps_keys_and_values,
    keeps_last_logits,
    next_arguments,
    outputs_with_cache,
    take_cache,
    tie_weights,
    tied_weights,
)
from tests.test_imports import SOURCES, imported

SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
LLAMA = LlamaConfig(**SIZES, intermediate_size=32, num_attention_heads=2, tie_word_embeddings=True)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm"),
    "mistral": ("MistralModel", "MistralAttention"),
    "phi3": ("Phi3Model", "Phi3DecoderLayer", "Phi3Attention", "Phi3MLP"),
    "qwen2": ("Qwen2Model", "Qwen2Attention"),
    "qwen3": ("Qwen3Model", "Qwen3Attention"),
}

PRIVATE = re.compile(r"\._(?:model_mapping|supports_\w+|is_stateful|get_dtype_plan|update_model_kwargs\w*|is_hf_initialized)\b")


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LLAMA).eval()


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_there(name):
    assert getattr(transformers_api, name) is not None


def test_a_name_that_is_gone_is_told_by_the_version(monkeypatch):
    monkeypatch.setattr(transformers_api, "MODULES", {**MODULES, "DynamicLayer": "moved_elsewhere"})
    with pytest.raises(UnsupportedModelError, match=r"has no DynamicLayer in transformers\.moved_elsewhere"):
        transformers_api.DynamicLayer  # noqa: B018


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in FAMILIES.items() for name in names])
def test_the_families_that_are_compared_with_have_their_classes(family, name):
    assert callable(getattr(transformers_api, f"modeling_{family}").__dict__[name].forward)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_rotary_positions_are_applied_by_a_function(family):
    module = getattr(transformers_api, f"modeling_{family}")
    assert callable(module.apply_rotary_pos_emb)
    assert callable(module.rotate_half)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_layers_are_called_with_these_arguments(family):
    """Lean layers stand in for them: hidden states, mask and positions by these names, the cache by one of ours."""
    module = getattr(transformers_api, f"modeling_{family}")
    (layer,) = [value for name, value in vars(module).items() if name.endswith("DecoderLayer") and inspect.isclass(value)]
    arguments = inspect.signature(layer.forward).parameters
    assert {"hidden_states", "attention_mask", "position_embeddings"} <= arguments.keys()
    assert len(arguments.keys() & set(CACHE_ARGUMENTS)) == 1


def test_the_argument_that_is_a_cache_is_the_one_that_is_taken():
    module = transformers_api.modeling_llama
    arguments = inspect.signature(module.LlamaDecoderLayer.forward).parameters
    caches = [name for name, argument in arguments.items() if re.search(r"\bCache\b", str(argument.annotation))]
    assert len(caches) == 1
    assert take_cache({name: name for name in arguments}) == caches[0]


def test_a_layer_without_a_cache_has_none_taken():
    arguments = {"use_cache": False}
    assert take_cache(arguments) is None
    assert arguments == {"use_cache": False}


def test_outputs_name_their_cache(llama):
    with torch.inference_mode():
        outputs = llama(input_ids=torch.tensor([[1, 2]]), use_cache=True)
    assert [name for name, value in outputs.items() if isinstance(value, Cache) and name in CACHE_NAMES]


def test_a_recurrent_state_is_named_among_the_outputs():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MambaConfig(**SIZES, state_size=4)).eval()
    with torch.inference_mode():
        outputs = model(input_ids=torch.tensor([[1, 2]]), use_cache=True)
    assert [name for name in outputs if name in CACHE_NAMES]


def test_outputs_made_of_a_cache_carry_it_to_the_next_call(llama):
    cache = DynamicCache(config=LLAMA)
    with torch.inference_mode():
        llama(input_ids=torch.tensor([[1, 2]]), use_cache=True, **{next(iter(outputs_with_cache(cache))): cache})
    arguments = {"attention_mask": torch.ones(1, 2, dtype=torch.long), "use_cache": True}
    following = next_arguments(llama, outputs_with_cache(cache), arguments, 1)
    assert [value for value in following.values() if value is cache]
    assert following["attention_mask"].shape == (1, 3)


def test_no_deprecated_name_is_used(llama, recwarn, capfd):
    outputs_with_cache(DynamicCache(config=LLAMA))
    assert "deprecated" not in capfd.readouterr().err
    assert not recwarn.list


def test_what_models_say_of_themselves(llama):
    assert keeps_last_logits(llama)
    assert keeps_keys_and_values(llama)
    assert dtype_plan(llama, torch.bfloat16) == {}
    assert all(re.compile(pattern) for pattern in (*ignored_when_missing(llama), *ignored_when_unexpected(llama)))
    assert is_causal_lm(LLAMA)
    assert not is_causal_lm(type("Config", (), {})())


def test_tied_weights_are_one(llama):
    tie_weights(llama)
    assert tied_weights(llama) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


def test_buffers_are_computed_and_parameters_left(llama):
    before = {name: parameter.clone() for name, parameter in llama.named_parameters()}
    rotary = llama.model.rotary_emb
    expected = rotary.inv_freq.clone()
    rotary._buffers["inv_freq"] = torch.full_like(expected, torch.nan)
    initialize_buffers(llama)
    assert torch.equal(rotary.inv_freq, expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in llama.named_parameters())


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "shared/transformers_api.py"])
def test_nothing_else_reaches_into_transformers(name):
    """Everywhere else there are documented names alone: those that `from transformers import` has."""
    source = SOURCES[name].read_text()
    modules = {module for module in imported(ast.parse(source)) if module.startswith("transformers.")}
    documented = {module for module in modules if module.count(".") == 1 and module.partition(".")[2] in transformers.__all__}
    assert modules - documented - {f"transformers.{name}" for name in ("logging",)} == set()
    assert re.findall(PRIVATE, source) == []


def test_experts_say_which_way_their_matrices_lie():
    """MXFP4 is unpacked into experts that multiply inputs with a matrix as it is; their shape does not tell."""
    config = transformers.GptOssConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_local_experts=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.model.layers[0].mlp.experts.is_transposed
