"""Recipes for checkpoints that arrive quantised: their weights are unpacked as they are loaded."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from layermesh.shared.checkpoints.packing import METHOD, Packing
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, find_recipes
from layermesh.shared.model.schemes import QuantisedTensor, QuantScheme, find_quantised

_Found = Mapping[str, QuantisedTensor]


def take_quantisation(config: Any, config_dir: Path) -> tuple[Packing | None, QuantScheme | None]:
    """Take out of a configuration what it says of quantised weights, which transformers should not act upon.

    Raises UnsupportedModelError for a kind that is not read.
    """
    quantisation = config.__dict__.pop("quantization_config", None)
    if quantisation is None:
        return None, None
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    if values.get("quant_method") == METHOD:
        return Packing.parse(values, config_dir), None
    return None, QuantScheme.parse(values, config_dir)


def quantised_recipes(tensors: dict[str, StoredTensor], model: Any, scheme: QuantScheme) -> list[Recipe]:
    """Return how `tensors`, quantised as `scheme` says, fill the parameters of `model`; raises what `find_recipes` does."""
    found = find_quantised(tensors, scheme)
    seen = tensors | {name: quantised.weight for name, quantised in found.items()}
    recipes: list[Recipe] = []
    to_unpack: dict[str, list[Copy]] = defaultdict(list)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for recipe in find_recipes(seen, model):
        if isinstance(recipe, Conversion):
            recipes.append(_unpacking_first(recipe, found))
        elif isinstance(recipe, Copy):
            to_unpack[recipe.target].append(recipe)
    for target, copies in to_unpack.items():
        if any(copy.source.name in found for copy in copies):
            recipes.append(_unpacking(target, shapes[target], copies, found))
        else:
            recipes += copies
    return recipes


def _unpacking(target: str, shape: tuple[int, ...], copies: Sequence[Copy], found: _Found) -> Conversion:
    """All copies into one parameter as one conversion."""
    names = [copy.source.name for copy in copies]

    def combine(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        made = torch.empty(prod(shape[:-1]), shape[-1])
        for copy, weights in zip(copies, _unpacked(names, decoded, found), strict=True):
            num_rows = prod(copy.source.shape[:-1])
            rows = weights.reshape(-1, shape[-1])
            part = rows[copy.first : copy.first + num_rows] if len(rows) > num_rows else rows
            begin = copy.start // shape[-1]
            made[slice(begin, begin + num_rows) if copy.rows is None else copy.rows] = part
        return {target: made.view(shape)}

    sources = tuple(part for copy in copies for part in _parts(copy.source, found))
    return Conversion(sources, (target,), combine, torch.float32, prod(shape))


def _unpacking_first(recipe: Conversion, found: _Found) -> Conversion:
    names = [source.name for source in recipe.sources]
    if not any(name in found for name in names):
        return recipe
    sources = tuple(part for source in recipe.sources for part in _parts(source, found))
    num_made = sum(source.num_elements for source in recipe.sources)
    return Conversion(
        sources, recipe.targets, lambda decoded: recipe.combine(_unpacked(names, decoded, found)), torch.float32, num_made
    )


def _parts(source: StoredTensor, found: _Found) -> tuple[StoredTensor, ...]:
    return found[source.name].parts if source.name in found else (source,)


def _unpacked(names: Sequence[str], decoded: Sequence[torch.Tensor], found: _Found) -> list[torch.Tensor]:
    """Turn the decoded parts of all sources into one tensor for each."""
    remaining = iter(decoded)
    made = []
    for name in names:
        if name in found:
            made.append(found[name].unpack([next(remaining) for _ in found[name].parts]))
        else:
            made.append(next(remaining))
    return made
