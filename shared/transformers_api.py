"""Everything that layermesh uses of transformers beyond its documented interface.

A release of transformers may rename or move any of it, as 5.24 did with the argument that carries the cache. Names that
are imported from here are looked up when they are first used, so that importing this module loads nothing.
tests/shared/test_transformers_api.py checks each of them; `make newest` and `make oldest` run it with other releases.
"""

from collections.abc import Mapping, MutableMapping
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

from layermesh.shared.errors import UnsupportedModelError

CACHE_ARGUMENTS: Final = ("cache", "past_key_values")  # of a decoder layer: from 5.24 on, and before
CACHE_NAMES: Final = (
    "cache",
    "past_key_values",
    "cache_params",
    "state",
    "mems",
    "past_buckets_states",
)  # of a model's outputs

MODULES: Final[Mapping[str, str]] = {
    "ALL_ATTENTION_FUNCTIONS": "modeling_utils",
    "CacheLayerMixin": "cache_utils",
    "DynamicLayer": "cache_utils",
    "LinearAttentionCacheLayerMixin": "cache_utils",
    "CausalLMOutputWithPast": "modeling_outputs",
    "SiLUActivation": "activations",
    "WeightConverter": "core_model_loading",
    "WeightRenaming": "core_model_loading",
    "dot_natural_key": "core_model_loading",
    "rename_source_key": "core_model_loading",
    "get_model_conversion_mapping": "conversion_mapping",
    "get_gguf_conversion_mapping": "integrations.gguf.utils",
    "GGUF_ARCHS": "integrations.gguf.gguf_conversion_mapping",
    "GGUF_PRE_TOKENIZER_SPLITS": "integrations.gguf.gguf_tokenizer_mapping",
    "get_gguf_hf_weights_map": "modeling_gguf_pytorch_utils",
    "Gemma2TensorProcessor": "modeling_gguf_pytorch_utils",
    "LlamaTensorProcessor": "modeling_gguf_pytorch_utils",
    "Qwen2MoeTensorProcessor": "modeling_gguf_pytorch_utils",
    "TENSOR_PROCESSORS": "modeling_gguf_pytorch_utils",
    "TensorProcessor": "modeling_gguf_pytorch_utils",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "models.auto.modeling_auto",
    "logits_process": "generation",
    "no_init_weights": "initialization",
    "modeling_llama": "models.llama",
    "modeling_mistral": "models.mistral",
    "modeling_phi3": "models.phi3",
    "modeling_qwen2": "models.qwen2",
    "modeling_qwen3": "models.qwen3",
}
"""The modules of transformers that define what is imported from here, by name."""
_SUBMODULES: Final = frozenset(name for name in MODULES if name.startswith("modeling_")) | {"logits_process"}


def __getattr__(name: str) -> Any:
    """Import `name` from the module of transformers that defines it.

    Raises UnsupportedModelError where the installed release does not have it.
    """
    if name not in MODULES:
        raise AttributeError(name)
    module = f"transformers.{MODULES[name]}"
    try:
        if name in _SUBMODULES:
            return import_module(f"{module}.{name}")
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedModelError(
            f"transformers {version('transformers')} cannot be used: it has no {name} in {module}. Install a release that "
            "layermesh was tested with: pip install --upgrade layermesh."
        ) from error


def take_cache(arguments: MutableMapping[str, Any]) -> Any:
    """Remove the cache from the keyword arguments of a decoder layer and return it; None where there is none."""
    for name in CACHE_ARGUMENTS:
        if name in arguments:
            return arguments.pop(name)
    return None


def outputs_with_cache(cache: Any) -> Any:
    """Return outputs of a causal language model that hold nothing but `cache`."""
    outputs: Any = __getattr__("CausalLMOutputWithPast")
    name = next(name for name in CACHE_ARGUMENTS if name in outputs.__dataclass_fields__)
    return outputs(**{name: cache})


def next_arguments(model: Any, outputs: Any, arguments: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """Return the arguments of `generate` for the call after the one that made `outputs`, which is `num_tokens` longer."""
    updated: dict[str, Any] = model._update_model_kwargs_for_generation(
        outputs, arguments, is_encoder_decoder=model.config.is_encoder_decoder, num_new_tokens=num_tokens
    )
    return updated


def keeps_last_logits(model: Any) -> bool:
    """Return whether `model` takes `logits_to_keep`."""
    return bool(model._supports_logits_to_keep())


def keeps_keys_and_values(model: Any) -> bool:
    """Return whether the whole state of a sequence in `model` is a dynamic cache."""
    return not model._is_stateful and bool(model._supports_default_dynamic_cache())


def dtype_plan(model: Any, dtype: Any) -> dict[str, Any]:
    """Return the dtypes that `model` prescribes for parameters when it computes in `dtype`, by patterns of their names."""
    return dict(model._get_dtype_plan(dtype))


def ignored_when_missing(model: Any) -> tuple[str, ...]:
    """Return regular expressions of the parameters that a checkpoint of `model` may lack."""
    return tuple(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())


def ignored_when_unexpected(model: Any) -> tuple[str, ...]:
    """Return regular expressions of what a checkpoint of `model` may hold without a place for it in the model."""
    return tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())


def is_causal_lm(config: Any) -> bool:
    """Return whether transformers has a causal language model for `config`."""
    from transformers import AutoModelForCausalLM

    return type(config) in AutoModelForCausalLM._model_mapping


def tie_weights(model: Any) -> None:
    """Let tied parameters of a new `model` be one."""
    model.tie_weights(recompute_mapping=False)


def tied_weights(model: Any) -> dict[str, str]:
    """Return the parameter that each tied parameter of `model` shares its tensor with, by name."""
    return dict(model.all_tied_weights_keys)


def initialize_buffers(model: Any) -> None:
    """Compute the buffers of `model` that have a fixed value, and leave its parameters as they are."""
    for module in model.modules():
        module._is_hf_initialized = False
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model.initialize_weights()
