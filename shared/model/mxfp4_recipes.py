"""Recipes for checkpoints whose experts are stored in MXFP4, as OpenAI publishes gpt-oss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from layermesh.shared.checkpoints.mxfp4 import GROUP_BYTES, GROUP_VALUES
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.recipes import Copy, Recipe, TransposedCopy, sources_of

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"
_SCALE_ENCODINGS: Final = frozenset({"U8", "F8_E8M0"})  # the same byte


@dataclass(frozen=True, slots=True)
class Mxfp4Pair:
    """The two tensors of a weight in MXFP4, and the weight as a model with transposed experts has it."""

    blocks: StoredTensor
    scales: StoredTensor
    weight: StoredTensor

    @property
    def parts(self) -> tuple[StoredTensor, StoredTensor]:
        """Both tensors."""
        return self.blocks, self.scales


def unpack_pairs(recipe: Recipe, pairs: Mapping[str, Mxfp4Pair], model: Any) -> Recipe:
    """Return `recipe`, which copies the `weight` of one of `pairs`, as one that decodes its two tensors; others as they are.

    Raises UnsupportedModelError for MXFP4 anywhere but in experts `[experts, inputs, outputs]`, which is all that transformers
    reads.
    """
    names = [source.name for source in sources_of(recipe) if source.name in pairs]
    if not names:
        return recipe
    pair = pairs[names[0]]
    if isinstance(recipe, Copy) and recipe.source is pair.weight and _is_transposed(recipe.target, pair, model):
        return TransposedCopy(pair.parts, recipe.target)
    raise UnsupportedModelError(
        f"{pair.blocks.path} has {pair.blocks.name} in MXFP4, which layermesh reads of experts that are laid out as gpt-oss's "
        "are. Look for this model without quantisation, or as GGUF."
    )


def _is_transposed(target: str, pair: Mxfp4Pair, model: Any) -> bool:
    """Whether the module that owns `target` multiplies inputs with it as it is, not with its transpose, for each expert.

    The shape does not tell: gpt-oss's `down_proj` is square.
    """
    owner = model.get_submodule(target.rpartition(".")[0])
    return len(pair.weight.shape) == 3 and bool(getattr(owner, "is_transposed", False))


def find_pairs(tensors: Mapping[str, StoredTensor]) -> dict[str, Mxfp4Pair]:
    """Return the weights in MXFP4 among `tensors`, by name; raises CheckpointError for parts that are missing or do not fit."""
    names = {name.removesuffix(leaf) for leaf in (_BLOCKS, _SCALES) for name in tensors if name.endswith(leaf)}
    return {name: _pair(name, tensors) for name in sorted(names)}


def _pair(name: str, tensors: Mapping[str, StoredTensor]) -> Mxfp4Pair:
    blocks, scales = tensors.get(name + _BLOCKS), tensors.get(name + _SCALES)
    if blocks is None or scales is None:
        there, lost = (scales, _BLOCKS) if blocks is None else (blocks, _SCALES)
        raise _misfit(there, f"and not {name}{lost}, without which it is no weight")
    if name in tensors:
        raise _misfit(blocks, f"and {name} too, which are the same weight")
    if blocks.encoding != "U8" or len(blocks.shape) < 3 or blocks.shape[-1] != GROUP_BYTES:
        raise _misfit(blocks, f"as {blocks.encoding} {list(blocks.shape)}, which are no groups of {GROUP_BYTES} bytes")
    if scales.encoding not in _SCALE_ENCODINGS or scales.shape != blocks.shape[:-1]:
        raise _misfit(scales, f"as {scales.encoding} {list(scales.shape)}, where its blocks are {list(blocks.shape)}")
    *experts, rows, groups, _ = blocks.shape
    return Mxfp4Pair(blocks, scales, replace(blocks, name=name, shape=(*experts, groups * GROUP_VALUES, rows)))


def _misfit(tensor: StoredTensor | None, what: str) -> CheckpointError:
    assert tensor is not None
    return CheckpointError(f"{tensor.path} has {tensor.name} {what}. The checkpoint is incomplete or damaged: fetch it again.")
