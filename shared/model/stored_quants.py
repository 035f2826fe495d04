"""Recipes for checkpoints that arrive quantised: their weights are unpacked as they are loaded."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from layermesh.shared.checkpoints.packing import METHOD, Packing
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.mxfp4_recipes import Mxfp4Pair, find_pairs, unpack_pairs
from layermesh.shared.model.quant_config import QuantScheme
from layermesh.shared.model.quant_parts import ModelUse, check_numbers, check_parts
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, find_recipes
from layermesh.shared.model.schemes import QuantisedTensor, find_quantised

_Found = Mapping[str, QuantisedTensor]

_KEYS: Final = {  # where configurations say it, and whose dialect an entry without a method is
    "quantization_config": None,
    "compression_config": "compressed-tensors",
}


def take_quantisation(config: Any, config_dir: Path) -> tuple[Packing | None, QuantScheme | None]:
    """Take out of a configuration what it says of quantised weights, which transformers should not act upon.

    Raises UnsupportedModelError for a kind that is not read, and for two that contradict each other.
    """
    stated = _take_stated(config, config_dir)
    for values in stated.values():
        if values.get("quant_method") == METHOD:
            return Packing.parse(values, config_dir), None
    schemes = {QuantScheme.parse(values, where) for where, values in stated.items()}
    if len(schemes) > 1:
        raise UnsupportedModelError(f"{' and '.join(stated)} contradict each other. Use another version of the model.")
    return None, next(iter(schemes), None)


def _take_stated(config: Any, config_dir: Path) -> dict[str, dict[str, Any]]:
    """Take what `config` and the configuration of its text model state, by where it stands."""
    stated = {}
    parts = {"": config, "text_config.": config.get_text_config(decoder=True)}
    for place, part in parts.items():
        for key, default in _KEYS.items():
            found = vars(part).pop(key, None)
            if found is None:
                continue
            if not isinstance(found, dict) and not hasattr(found, "to_dict"):
                raise CheckpointError(
                    f"{config_dir.name}/config.json: {place}{key} is {ascii(found)[:40]}, not an object. Fix it."
                )
            values = found if isinstance(found, dict) else found.to_dict()
            method = {} if values.keys() & {"quant_method", "quant_algo"} else {"quant_method": default}
            stated[f"{config_dir.name}/config.json: {place}{key}"] = method | values
    return stated


def stored_recipes(
    tensors: dict[str, StoredTensor], model: Any, scheme: QuantScheme | None, towers: Sequence[str] = ()
) -> list[Recipe]:
    """Return how `tensors`, perhaps quantised as `scheme` says, fill the parameters of `model` outside `towers`.

    Raises what `find_recipes` raises, and an error for a part of a quantised weight that would not be applied.
    """
    use = ModelUse(model, towers)
    found = find_quantised(tensors, scheme or QuantScheme(), lambda name: use.owner(name) is not None)
    pairs = find_pairs(tensors) if scheme is not None and scheme.method == "mxfp4" else {}
    quantised: dict[str, QuantisedTensor | Mxfp4Pair] = {**found, **pairs}
    parts = {part.name for each in quantised.values() for part in each.parts}
    check_parts(tensors, parts, use)
    weights = {name: each.weight for name, each in quantised.items()}
    recipes = find_recipes({name: tensor for name, tensor in tensors.items() if name not in parts} | weights, model)
    check_numbers(recipes, weights, model, use)
    recipes = [unpack_pairs(recipe, pairs, model) for recipe in recipes] if pairs else recipes
    return _unpack_first(recipes, model, found) if found else recipes


def _unpack_first(found_recipes: Sequence[Recipe], model: Any, found: _Found) -> list[Recipe]:
    recipes: list[Recipe] = []
    to_unpack: dict[str, list[Copy]] = defaultdict(list)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    for recipe in found_recipes:
        if isinstance(recipe, Conversion):
            recipes.append(_unpacking_first(recipe, found))
        elif isinstance(recipe, Copy):
            to_unpack[recipe.target].append(recipe)
        else:
            recipes.append(recipe)
    for target, copies in to_unpack.items():
        if any(copy.source.name in found for copy in copies):
            recipes.append(_unpacking(target, shapes[target], copies, found))
        else:
            recipes += copies
    return recipes


def _unpacking(target: str, shape: tuple[int, ...], copies: Sequence[Copy], found: _Found) -> Conversion:
    """All copies into one parameter as one conversion."""
    names = [copy.source.name for copy in copies]
    columns = shape[-1] if shape else 1

    def combine(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        made = torch.empty(prod(shape[:-1]), columns)
        for copy, weights in zip(copies, _unpacked(names, decoded, found), strict=True):
            num_rows = prod(copy.source.shape[:-1])
            rows = weights.reshape(-1, columns)
            part = rows[copy.first : copy.first + num_rows] if len(rows) > num_rows else rows
            begin = copy.start // columns
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
