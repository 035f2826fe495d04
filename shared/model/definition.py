"""A model as transformers defines it, built without its weights."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging

from layermesh.shared.checkpoints.packing import Packing
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.light_imports import load_compiler
from layermesh.shared.model.context import stated_context
from layermesh.shared.model.foreign_code import leave_out_foreign_code
from layermesh.shared.model.meta_device import LightMeta
from layermesh.shared.model.quant_config import QuantScheme
from layermesh.shared.model.stored_quants import take_quantisation
from layermesh.shared.transformers_api import (
    initialize_buffers,
    is_causal_lm,
    keeps_keys_and_values,
    keeps_last_logits,
    no_init_weights,
    tie_weights,
    tied_weights,
)

SENSES = ("vision", "audio", "image", "video", "speech")  # what sub-models that text never reaches are called after
MOST_SAID = 600  # characters of what transformers says: some of it quotes the whole configuration
ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_BUILDING = threading.Lock()  # transformers changes the default dtype of the whole process while it builds a model


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A causal language model whose parameters are on torch's meta device and whose computed buffers are real.

    `layers` is the list of decoder layers that spans count, `layers_path` its dotted name. `towers` are the dotted names of
    sub-models that text never reaches (vision, audio); their weights are not read. `lookups` are embeddings that are only
    ever indexed by token id, so that single rows of them suffice. `head` is the output projection, if it is a plain linear
    layer, and `tied` maps a parameter's name to the one whose tensor it shares. `packing` is set where linear layers compute
    with packed weights, `scheme` where the checkpoint has quantised ones that are unpacked as they are loaded.
    """

    model: Any  # a PreTrainedModel that can generate; transformers' own types do not say so
    layers: nn.ModuleList
    layers_path: str
    towers: tuple[str, ...]
    lookups: tuple[str, ...]
    head: str | None
    tied: dict[str, str]
    packing: Packing | None = None
    scheme: QuantScheme | None = None

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def weight_form(self) -> str:
        """What most weights are multiplied as: "bfloat16", "int4" and so on, as `MachineProfile.weight_rates` has it."""
        return str(self.model.dtype).removeprefix("torch.") if self.packing is None else f"int{self.packing.bits}"

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    @property
    def keeps_last_logits(self) -> bool:
        """Whether the model can be asked for the logits of the last token alone."""
        return keeps_last_logits(self.model)

    @property
    def cross_layers(self) -> frozenset[int]:
        """The layers that attend to an image and are passed over where there is none."""
        return frozenset(getattr(self.model.config.get_text_config(decoder=True), "cross_attention_layers", None) or ())

    @property
    def takes_chunks(self) -> bool:
        """Whether a prompt may come in several calls: not where a layer keeps a state instead of keys and values."""
        config = self.model.config.get_text_config(decoder=True)
        kinds = set(getattr(config, "layer_types", None) or ())
        return kinds <= ATTENTION_KINDS and keeps_keys_and_values(self.model)

    @property
    def context_length(self) -> int | None:
        """The most tokens a sequence may have by the model's configuration; None where the architecture sets no limit."""
        return stated_context(self.model.config.get_text_config(decoder=True))


def read_config(config_dir: Path) -> Any:
    """Return transformers' configuration of the model in `config_dir`.

    Raises UnsupportedModelError for an architecture that transformers does not know or that is not a causal language model,
    CheckpointError for a configuration that cannot be read.
    """
    try:
        with _BUILDING, _quiet():
            config = AutoConfig.from_pretrained(config_dir, trust_remote_code=False)
    except (KeyError, ValueError) as error:
        raise UnsupportedModelError(_unknown(config_dir, error)) from error
    except Exception as error:  # any code of any family, given values it may not expect
        raise CheckpointError(f"{config_dir / 'config.json'} cannot be used: {_one_line(error)}") from error
    if not is_causal_lm(config):
        raise UnsupportedModelError(
            f"{config_dir.name} is a {config.model_type!r} model, which does not generate text. "
            "layermesh runs causal language models."
        )
    leave_out_foreign_code(config, config_dir)
    return config


def define_model(config_dir: Path, dtype: torch.dtype) -> ModelDefinition:
    """Build the model that `config_dir` describes, computing in `dtype`, without memory for its parameters.

    Raises what `read_config` raises.
    """
    config = read_config(config_dir)
    packing, scheme = take_quantisation(config, config_dir)
    try:
        with _BUILDING, _quiet():
            model = _build(config, dtype)
    except Exception as error:  # any code of any family, given values it may not expect
        raise UnsupportedModelError(f"transformers cannot build the model in {config_dir}: {_one_line(error)}") from error
    model.eval()
    layers_path, layers = _find_layers(model)
    towers = _find_towers(model)
    definition = ModelDefinition(
        model=model,
        layers=layers,
        layers_path=layers_path,
        towers=towers,
        lookups=_find_lookups(model, towers),
        head=_find_head(model),
        tied=tied_weights(model),
        packing=packing,
        scheme=scheme,
    )
    if not definition.takes_chunks:
        load_compiler()
    return definition


def compute_buffers(model: Any, missing: frozenset[str]) -> None:
    """Give `model` real values for the buffers that no checkpoint holds (rotary frequencies and the like).

    `missing` names further, persistent buffers that this checkpoint happens to lack.
    """
    names = {name for name, _ in model.named_non_persistent_buffers()} | missing
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        likeness = owner._buffers[leaf]
        owner._buffers[leaf] = torch.empty(likeness.shape, dtype=likeness.dtype, device="cpu")  # empty_like loads the compiler
    with _BUILDING:
        initialize_buffers(model)


def _build(config: Any, dtype: torch.dtype) -> Any:
    """Build the model on the meta device, and only its ranges, if its code allows for that, elsewhere."""
    try:
        model = _build_on_meta(config, dtype, LightMeta())
    except Exception:
        model = _build_on_meta(config, dtype, nullcontext())
    tie_weights(model)  # which transformers leaves out with the initial values
    return model


def _build_on_meta(config: Any, dtype: torch.dtype, exceptions: AbstractContextManager[object]) -> Any:
    with torch.device("meta"), exceptions, no_init_weights():  # what is entered later is asked first
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' remarks off the user's terminal: what matters in them becomes an error of ours."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    config = model.config.get_text_config(decoder=True)
    num_layers = getattr(config, "num_hidden_layers", None)
    towers = _find_towers(model)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not _inside(name, towers)
    ]
    if not lists:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of layers that could be streamed")
    outermost = [(name, module) for name, module in lists if not _inside(name, [other for other, _ in lists])]
    return max(outermost, key=lambda item: (len(item[1]) == num_layers, _num_elements(item[1])))


def _find_towers(model: Any) -> tuple[str, ...]:
    others = [
        sub
        for key in getattr(model.config, "sub_configs", {})
        if any(sense in key for sense in SENSES) and (sub := getattr(model.config, key, None)) is not None
    ]
    return tuple(
        name
        for name, module in model.named_modules()
        if name and isinstance(module, PreTrainedModel) and any(module.config is other for other in others)
    )


def _find_lookups(model: Any, towers: tuple[str, ...]) -> tuple[str, ...]:
    vocab_size = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    return tuple(
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocab_size and not _inside(name, towers)
    )


def _find_head(model: Any) -> str | None:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    names: dict[Any, str] = {module: name for name, module in model.named_modules()}
    return names[head]


def _num_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _inside(name: str, outer: tuple[str, ...] | list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in outer)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error)[:MOST_SAID].split())}"


def _unknown(config_dir: Path, error: Exception) -> str:
    said = str(error)[:MOST_SAID].strip()
    reason = said.splitlines()[0] if said else type(error).__name__
    return (
        f"transformers does not know the architecture in {config_dir / 'config.json'}: {reason} "
        "A newer transformers may (pip install -U transformers); code from model repositories is never run."
    )
