"""The rule of quantised checkpoints: no number is computed with while something stored beside it is left out.

It goes by what the files store, whatever their configuration says.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.recipes import NameMap, Recipe, sources_of, targets_of
from layermesh.shared.model.schemes import FLOATS, FP8_VALUES

# Scales of inputs, outputs and caches, all of which layermesh computes in full precision.
_HARMLESS: Final = re.compile(
    r"(\w+_)?(in|input|out|output|act|activation)_(global_)?(scale(_inv|_ub)?|zero_point|offset|amax)|[qkvp]_(scale|zero_point)"
    r"|kv_scale|kv_cache_scale|qscale_act|((in|out)put|[qkv](_bmm)?|softmax)_quantizer\._amax"
)
_PART: Final = re.compile(r"scale|zero|amax|absmax|quant|packed|shape|g_idx|qdata|SCB|codebook|hadamard|smooth|blocks|offset")
_PART_OWNER: Final = re.compile(r"quantizer|quant_state")
_PART_OF_TENSOR: Final = re.compile(r"(.+?)_(?:weight_)?(?:scale|zero|amax|absmax|packed|shape|qdata|blocks|global|offset).*")
_PART_OF_MODULE: Final = re.compile(r"(act_|channel_)?scales|smooth\w*")  # of inputs, which are divided by them


class ModelUse:
    """Which tensors of a checkpoint `model` computes with: not those of `towers`, nor of layers that it has not."""

    def __init__(self, model: Any, towers: Sequence[str] = ()) -> None:
        self._model = model
        self._towers = towers

    @cached_property
    def _names(self) -> NameMap:
        return NameMap(self._model)

    @cached_property
    def _modules(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._model.named_modules() if name)

    def has_parameter(self, name: str) -> bool:
        """Whether a tensor called `name` is itself a parameter of the model."""
        return self._names.target(name) is not None

    def computes_with(self, target: str | None) -> bool:
        """Whether a parameter or module of the model is outside its towers."""
        return target is not None and not any(target.startswith(f"{tower}.") for tower in self._towers)

    def owner(self, name: str) -> str | None:
        """Return the weight that a part called `name` belongs to, or the module, if the model computes with it."""
        for stem in _stems(name):
            if self.computes_with(self._names.target(stem)):
                return stem
        module = self._names.find(name)[0].rpartition(".")[0]
        is_part = _PART_OF_MODULE.fullmatch(_leaf(name)) and module in self._modules and self.computes_with(module)
        return module if is_part else None


def check_parts(tensors: Mapping[str, StoredTensor], applied: Collection[str], use: ModelUse) -> None:
    """Raise UnsupportedModelError for a scale, zero or the like of a used weight that is not among those `applied`."""
    for name in tensors:
        if name in applied or not _is_part(name) or is_harmless(name) or use.has_parameter(name):
            continue
        if (owner := use.owner(name)) is not None:
            raise UnsupportedModelError(
                f"{tensors[name].path} stores {name} ({tensors[name].encoding}) for {owner}, and layermesh does not know how "
                "to apply it under the quantization_config of this model, so the weights would be wrong. Use another version "
                "of the model, the unquantised checkpoint, or a GGUF file."
            )


def check_numbers(recipes: Sequence[Recipe], unpacked: Collection[str], model: Any, use: ModelUse) -> None:
    """Raise an error for numbers in FP8, integers or words that would become weights without being `unpacked` (names).

    CheckpointError for FP8, whose scales may be in a file that is missing, UnsupportedModelError for the others.
    """
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for recipe in recipes:
        if not any(name in floating and use.computes_with(name) for name in targets_of(recipe)):
            continue
        for source in sources_of(recipe):
            if source.encoding in FP8_VALUES and source.name not in unpacked:
                raise CheckpointError(
                    f"{source.path} has {source.name} in FP8 and no scale for it. Files may be missing: fetch it again."
                )
            if source.dtype is not None and source.encoding not in FLOATS and source.name not in unpacked:
                raise UnsupportedModelError(
                    f"{source.path} stores {source.name} as {source.encoding}, which layermesh does not know how to turn into "
                    "weights. Use another version of the model, the unquantised checkpoint, or a GGUF file."
                )


def _stems(name: str) -> Iterator[str]:
    """The names of weights that a tensor of this name may belong to."""
    module, _, leaf = name.rpartition(".")
    around = module.rpartition(".")[0]
    yield from (f"{module}.weight", module)
    if matched := _PART_OF_TENSOR.fullmatch(leaf):
        yield f"{module}.{matched[1]}"
    yield from (f"{around}.weight", around)  # of a module that only quantises, such as weight_quantizer


def _is_part(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return bool(_PART.search(leaf) or _PART_OWNER.search(_leaf(module)))


def is_harmless(name: str) -> bool:
    """Whether a tensor of this name scales inputs, outputs or caches, which layermesh computes in full precision."""
    module, _, leaf = name.rpartition(".")
    return bool(_HARMLESS.fullmatch(leaf) or _HARMLESS.fullmatch(f"{_leaf(module)}.{leaf}"))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
