"""The fast path: decoder layers of the Llama shape replaced by lean ones, and the recipes that fill those."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean_fit import activation_of, gate_up_names, lean_shape, qkv_names
from layermesh.shared.model.lean_layer import Fused, LeanLayer, LeanShape, Turner
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, TransposedCopy, targets_of

_FUSED = {"self_attn": "qkv", "mlp": "gate_up"}  # where the matrices with one input are gathered
_JOINED = "joined"  # what several are called when they have become one


@dataclass(frozen=True, slots=True)
class _Move:
    """Where a parameter goes: into `target`, from row `first` on."""

    target: str
    first: int = 0


def make_lean(
    definition: ModelDefinition, recipes: Sequence[Recipe], treatment: Callable[[str], object] = lambda _name: None
) -> list[Recipe]:
    """Replace the layers of `definition` that have the Llama shape and return the recipes for what it has now.

    Matrices with one input become one where they and their biases are stored alike and get the same `treatment` (which is
    asked with their names); others keep apart.
    """
    sources = _encodings(recipes)

    def join(names: Sequence[str]) -> bool:
        biases = {sources.get(f"{name.removesuffix('.weight')}.bias") for name in names}
        return len(biases) == 1 and len({(sources.get(name), treatment(name)) for name in names}) == 1

    moves = _replace_layers(definition, join)
    return [_moved(recipe, moves) for recipe in recipes]


def make_lean_as_stored(definition: ModelDefinition, stored: Collection[str]) -> None:
    """Replace layers so that their parameters are those `stored` under their names, as `make_lean` chose before."""
    paths = {name.rpartition(".")[0] for name in stored}

    def join(names: Sequence[str]) -> bool:
        path, _, member = names[0].removesuffix(".weight").rpartition(".")
        owner, _, place = path.rpartition(".")
        return f"{owner}.{_FUSED[place]}.{member}" not in paths

    _replace_layers(definition, join)


def _encodings(recipes: Sequence[Recipe]) -> dict[str, object]:
    """How each parameter is stored, for those that are copied; everything else is like nothing else."""
    found: dict[str, object] = {}
    for recipe in recipes:
        if not isinstance(recipe, Copy):
            found |= {name: object() for name in targets_of(recipe)}
        else:
            found[recipe.target] = found.get(recipe.target, recipe.source.encoding)
            if found[recipe.target] != recipe.source.encoding:
                found[recipe.target] = object()
    return found


def _replace_layers(definition: ModelDefinition, join: Callable[[Sequence[str]], bool]) -> dict[str, _Move]:
    """Put lean layers in place and return where the parameters of the old ones have gone; `join` is asked with names."""
    moves: dict[str, _Move] = {}
    turner = Turner()
    for index, layer in enumerate(definition.layers):
        shape = lean_shape(layer)
        if shape is not None:
            path = f"{definition.layers_path}.{index}"
            lean = _lean_layer(layer, shape, path, turner, join)
            moves |= _moves(layer, lean, path)
            definition.layers[index] = lean
    return moves


def _lean_layer(layer: Any, shape: LeanShape, path: str, turner: Turner, join: Callable[[Sequence[str]], bool]) -> LeanLayer:
    def fused(owner: Any, place: str, names: Sequence[str]) -> Fused:
        members = {name: getattr(owner, name) for name in names}
        if len(members) > 1 and join([f"{path}.{place}.{name}.weight" for name in names]):
            members = {_JOINED: _joined(list(members.values()))}
        return Fused(members)

    attention, mlp = layer.self_attn, layer.mlp
    qkv = fused(attention, "self_attn", qkv_names(attention))
    gate_up = fused(mlp, "mlp", gate_up_names(mlp))
    return LeanLayer(layer, shape, qkv, gate_up, activation_of(mlp), turner).eval()


def _moves(layer: Any, lean: LeanLayer, path: str) -> dict[str, _Move]:
    """Where every parameter of `layer` is in `lean`."""
    moves = {}
    for owner, names in (("self_attn", qkv_names(layer.self_attn)), ("mlp", gate_up_names(layer.mlp))):
        fused, first = getattr(lean, _FUSED[owner]), 0
        for member in names:
            target = f"{path}.{_FUSED[owner]}.{_JOINED if hasattr(fused, _JOINED) else member}"
            for leaf in ("weight", "bias"):
                moves[f"{path}.{owner}.{member}.{leaf}"] = _Move(f"{target}.{leaf}", first)
            if hasattr(fused, _JOINED):
                first += getattr(getattr(layer, owner), member).out_features
    for owner, names in (("self_attn", ("o_proj", "q_norm", "k_norm")), ("mlp", ("down_proj",))):
        for member in names:
            for leaf in ("weight", "bias"):
                moves[f"{path}.{owner}.{member}.{leaf}"] = _Move(f"{path}.{member}.{leaf}")
    return moves


def _moved(recipe: Recipe, moves: Mapping[str, _Move]) -> Recipe:
    if isinstance(recipe, Conversion):
        return _moved_conversion(recipe, moves) if any(name in moves for name in recipe.targets) else recipe
    move = moves.get(recipe.target)
    if move is None or isinstance(recipe, TransposedCopy):  # which fills experts, and no lean layer has any
        return recipe
    if recipe.rows is not None:
        return replace(recipe, target=move.target, rows=recipe.rows + move.first)
    columns = recipe.source.shape[-1] if len(recipe.source.shape) > 1 else 1
    return replace(recipe, target=move.target, start=recipe.start + move.first * columns)


def _moved_conversion(recipe: Conversion, moves: Mapping[str, _Move]) -> Conversion:
    names = {name: moves[name].target if name in moves else name for name in recipe.targets}

    def combine(given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {names.get(name, name): tensor for name, tensor in recipe.combine(given).items()}

    return replace(recipe, targets=tuple(names.values()), combine=combine)


def _joined(members: Sequence[nn.Linear]) -> nn.Linear:
    """Return one layer for the outputs of all, its parameters on torch's meta device."""
    out, first = sum(member.out_features for member in members), members[0]
    return nn.Linear(first.in_features, out, bias=first.bias is not None, device="meta", dtype=first.weight.dtype)


def lean_layers(definition: ModelDefinition) -> frozenset[int]:
    """Return which layers of `definition` are lean."""
    return frozenset(index for index, layer in enumerate(definition.layers) if isinstance(layer, LeanLayer))
