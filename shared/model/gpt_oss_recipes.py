"""Recipes for gpt-oss from GGUF: experts are decoded straight into columns, gates and ups by turns."""

import re
from collections.abc import Sequence
from typing import Any, Final

import torch

from layermesh.shared.checkpoints.gguf_gpt_oss import (
    EXPERT_BIASES,
    EXPERT_COLUMNS,
    GATE_UP_BIAS,
    LAYER_NAMES,
    OUTER_NAMES,
)
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, TransposedCopy, targets_of

_LAYER: Final = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
_LAYERS: Final = "model.layers"


def gpt_oss_recipes(checkpoint: Checkpoint, model: Any) -> list[Recipe]:
    """Return how the GGUF `checkpoint` fills the parameters of `model`, a gpt-oss model on the meta device.

    Raises CheckpointError for missing tensors and wrong shapes, UnsupportedModelError for a tensor that gpt-oss does not have.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    recipes = [recipe for name in checkpoint.tensors if (recipe := _recipe(checkpoint, name)) is not None]
    for recipe in recipes:
        _check_shape(checkpoint, recipe, shapes)
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    made = {target for recipe in recipes for target in targets_of(recipe)}
    missing = [name for name in shapes if name not in made and name not in tied]
    missing += [name for name in _unpaired(checkpoint) if name not in checkpoint.tensors]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {missing[0]} and {len(missing) - 1} more of what its model needs. The file is "
            "incomplete: fetch it again, or look for another conversion of this model."
        )
    return recipes


def _recipe(checkpoint: Checkpoint, name: str) -> Recipe | None:
    """Return what becomes of the tensor `name`; None where another tensor's recipe takes it along."""
    stored = checkpoint.tensors[name]
    if name in OUTER_NAMES:
        return Copy(stored, OUTER_NAMES[name])
    match = _LAYER.fullmatch(name)
    layer, place = (f"{_LAYERS}.{match[1]}", match[2]) if match else ("", "")
    if place in LAYER_NAMES:
        return Copy(stored, f"{layer}.{LAYER_NAMES[place]}")
    if place in EXPERT_COLUMNS:
        target, first, step = EXPERT_COLUMNS[place]
        return TransposedCopy((stored,), f"{layer}.{target}", first, step)
    if place in EXPERT_BIASES:
        pair = [checkpoint.tensors.get(name.removesuffix(place) + bias) for bias in EXPERT_BIASES]
        return _by_turns(pair, f"{layer}.{GATE_UP_BIAS}") if place == EXPERT_BIASES[0] else None
    raise UnsupportedModelError(
        f"{checkpoint.path} has a tensor {name}, which layermesh does not know of gpt-oss. Look for another conversion of this "
        "model, or for its safetensors."
    )


def _by_turns(pair: Sequence[StoredTensor | None], target: str) -> Conversion | None:
    """Return the conversion of two vectors for each expert into one that takes values from them by turns."""
    sources = tuple(stored for stored in pair if stored is not None)
    if len(sources) < len(pair):
        return None

    def combine(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {target: torch.stack(list(decoded), dim=-1).flatten(-2)}

    return Conversion(sources, (target,), combine, torch.float32)


def _unpaired(checkpoint: Checkpoint) -> list[str]:
    """Return the matrices that the gates and ups there are go with, so that no half of a parameter stays unfilled."""
    places = [place for place, (_, _, step) in EXPERT_COLUMNS.items() if step > 1]
    found = [(name, place) for name in checkpoint.tensors for place in places if name.endswith(f".{place}")]
    return [name.removesuffix(place) + other for name, place in found for other in places]


def _check_shape(checkpoint: Checkpoint, recipe: Recipe, shapes: dict[str, tuple[int, ...]]) -> None:
    (target,) = targets_of(recipe)
    expected = shapes.get(target)
    if isinstance(recipe, Copy):
        source, made = recipe.source, recipe.source.shape
    elif isinstance(recipe, Conversion):
        source = recipe.sources[0]
        made = (*source.shape[:-1], sum(part.shape[-1] for part in recipe.sources))
        made = made if len({part.shape for part in recipe.sources}) == 1 else ()
    else:
        source = recipe.sources[0]
        made = _transposed_shape(source, recipe.step)
    if made != expected:
        raise CheckpointError(
            f"{checkpoint.path} has {source.name} of shape {list(source.shape)}, which does not make {target} "
            f"{list(expected) if expected else '(which the model does not have)'}. The file does not fit its own metadata: "
            "fetch it again, or look for another conversion."
        )


def _transposed_shape(source: StoredTensor, step: int) -> tuple[int, ...]:
    if len(source.shape) != 3:
        return ()
    experts, rows, columns = source.shape
    return experts, columns, step * rows
