"""Build a tiny random checkpoint of any causal-LM architecture, and run it with plain transformers.

`python -m tests.architectures.tiny [MODEL_TYPE ...]` builds, reloads and generates with each, one line for it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures.overrides import BUILT_AS, NOT_BUILT, OVERRIDES
from tests.architectures.sizes import LATENT_ATTENTION_SIZES, LAYER_PATTERNS, NUM_LAYERS, SIZES

__all__ = ["MODEL_TYPES", "NOT_BUILT", "Reference", "build", "reference"]

MODEL_TYPES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
PROMPT: list[int] = [17, 101, 5, 64, 33, 90, 12, 77, 48, 110, 29, 56]

_MIN_LAYERS = 4
_MAX_LAYERS = 8
_MATRIX_STD = 0.25
_WORD_STD = 1.0
_TIED_STD = 0.05
_EMBEDDING_STD = 0.05
_VECTOR_NOISE = 0.05


@dataclass(frozen=True, slots=True)
class Reference:
    """What plain transformers answers: one token id and one float `[vocab]` logits tensor per generated token."""

    token_ids: list[int]
    logits: list[torch.Tensor]


def build(model_type: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random checkpoint of `model_type` into `folder` and return the folder; equal seeds, equal weights.

    Raises:
        ValueError: the model type is one that `NOT_BUILT` gives a reason for.
    """
    if model_type in NOT_BUILT:
        raise ValueError(f"{model_type} cannot be built tiny: {NOT_BUILT[model_type]}")
    torch.manual_seed(seed)
    model = untrained(model_type)
    randomise(model, seed)
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, prompt: list[int], num_tokens: int) -> Reference:
    """Generate `num_tokens` greedily after `prompt` with plain transformers, its cache and default attention.

    Its weights are moved to memory of their own first. from_pretrained maps them from the file, wherever they lie there, and
    on some processors one token's products round differently with a matrix that is not aligned.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    settings = model.generation_config
    for name in (
        "eos_token_id",
        "forced_eos_token_id",
        "forced_bos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
    ):
        setattr(settings, name, None)
    input_ids = torch.tensor([prompt])  # [1, prompt]
    with torch.inference_mode():
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            output_logits=True,
            return_dict_in_generate=True,
            use_cache=True,
        )
    return Reference(output.sequences[0, -num_tokens:].tolist(), [step[0].float() for step in output.logits])


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of the tiny model: the family's defaults, shrunk, then this type's overrides."""
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_merged(_shrunk(config_class, config_class()), OVERRIDES.get(model_type, {})))


def untrained(model_type: str) -> PreTrainedModel:
    """The tiny model as transformers initialises it; the whole model where the causal LM is one part of a composite."""
    config = tiny_config(model_type)
    if model_type in BUILT_AS:
        return getattr(transformers, BUILT_AS[model_type])._from_config(config, dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw weights large enough that greedy tokens vary; norms stay near their initial value, biases leave zero."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    words = model.get_input_embeddings().weight
    word_std = _TIED_STD if _is_tied(model) else _WORD_STD
    tensors = [*model.named_parameters(), *_biases_kept_as_buffers(model)]
    with torch.no_grad():
        for _, tensor in sorted(tensors, key=lambda pair: pair[0]):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2:
                tensor.add_(noise * _VECTOR_NOISE)
            elif tensor is words:
                tensor.copy_(noise * word_std)
            elif id(tensor) in embeddings:
                tensor.copy_(noise * _EMBEDDING_STD)
            elif tensor.std() < _MATRIX_STD:
                tensor.copy_(tensor.mean() + _centred(noise) * _MATRIX_STD)


def _centred(noise: torch.Tensor) -> torch.Tensor:
    for dim in (-1, -2):
        if noise.shape[dim] > 1:
            noise = noise - noise.mean(dim, keepdim=True)
    return noise


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _biases_kept_as_buffers(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    saved = model.state_dict()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved and name.endswith("bias")]


def _shrunk(config_class: type[PreTrainedConfig], default: PreTrainedConfig) -> dict[str, Any]:
    fields = config_class.__dataclass_fields__
    settings = {name: value for name, value in SIZES.items() if name in fields}
    if "qk_rope_head_dim" in fields:
        settings |= {name: value for name, value in LATENT_ATTENTION_SIZES.items() if name in fields}
    settings |= _layers(default)
    for name in fields:
        if isinstance(inner := default.__dict__.get(name), PreTrainedConfig):
            settings[name] = {"model_type": inner.model_type} | _shrunk(type(inner), inner)
    return settings


def _layers(default: PreTrainedConfig) -> dict[str, Any]:
    fields = type(default).__dataclass_fields__
    lists = {name: list(getattr(default, name) or ()) for name in LAYER_PATTERNS if name in fields}
    patterns = {name: kinds for name, kinds in lists.items() if len(set(kinds)) > 1}
    num_layers = max([_MIN_LAYERS, *(_until_all_kinds(kinds) for kinds in patterns.values())])
    counts = dict.fromkeys((name for name in NUM_LAYERS if name in fields), num_layers)
    return {name: (kinds * num_layers)[:num_layers] for name, kinds in patterns.items()} | counts


def _until_all_kinds(kinds: list[str]) -> int:
    return min(_MAX_LAYERS, 1 + max(kinds.index(kind) for kind in set(kinds)))


def _merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in overrides.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _line(model_type: str) -> str:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = build(model_type, Path(name))
        answer = reference(folder, PROMPT, 8)
        seconds = time.perf_counter() - started
        weights = load_file(folder / "model.safetensors").values()
        num_layers = AutoConfig.from_pretrained(folder).get_text_config(decoder=True).num_hidden_layers
    num_parameters, num_bytes = sum(tensor.numel() for tensor in weights), sum(tensor.nbytes for tensor in weights)
    size = f"{num_parameters:7} parameters {num_bytes:7} bytes"
    return f"{model_type:24} ok {size} {seconds:5.2f} s {num_layers:2} layers {answer.token_ids}"


def main(model_types: list[str]) -> int:
    """Build, reload and generate with each type, print a line for each and a count; the number of failures."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = model_types or [name for name in MODEL_TYPES if name not in NOT_BUILT]
    num_failed = 0
    for model_type in chosen:
        try:
            print(_line(model_type), flush=True)
        except Exception as error:
            num_failed += 1
            print(f"{model_type:24} FAILED {type(error).__name__}: {error}", flush=True)
    print(f"{len(chosen) - num_failed} of {len(chosen)} built; {len(NOT_BUILT)} not tried")
    return num_failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
