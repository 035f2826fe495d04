"""Opening a packed model: modules that compute with packed weights, in place of the linear layers they were made of."""

from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from layermesh.shared.checkpoints.decoding import row_bytes
from layermesh.shared.checkpoints.packing import Packing
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.model.packed_layer import PackedLayer, can_stand_in
from layermesh.shared.model.recipes import Copy, Recipe, exact_recipes
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.linear import PackedHead, QuantLinear
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.tiles import packing_tile


class Definition(Protocol):
    """What is asked of a ModelDefinition, which builds on this module."""

    @property
    def model(self) -> Any:
        """The model, on the meta device."""

    @property
    def layers(self) -> nn.ModuleList: ...

    @property
    def head(self) -> str | None:
        """The dotted name of its output projection."""


def quantise_definition(definition: Definition, packing: Packing) -> None:
    """Put packed modules, still without weights, in the places of `definition` that `packing` names.

    Raises UnsupportedModelError for a pack made for another kind of processor, CheckpointError where it does not fit the
    model.
    """
    if packing.tile != packing_tile():
        raise UnsupportedModelError(
            f"{definition.model.config._name_or_path or 'this model'} was packed for processors that read tiles of "
            f"{packing.tile} rows, and this one reads {packing_tile()}. Pack the original again on this machine: "
            "layermesh quantize."
        )
    kernel = native_kernel()  # building it takes a second or two, which the first token should not
    for name, form in packing.modules.items():
        bounds = packing.head_bounds if name == definition.head else ()
        _replace(definition.model, name, form, packing.tile, bounds)
    for index, layer in enumerate(definition.layers):
        if kernel is not None and isinstance(layer, LeanLayer) and can_stand_in(layer):
            definition.layers[index] = PackedLayer(layer, kernel).eval()


def packed_recipes(tensors: dict[str, StoredTensor], model: Any, packing: Packing) -> list[Recipe]:
    """Return how the tensors of a packed checkpoint fill the parameters of `model`: they have the same names."""
    known = dict(tensors)
    for name, table in packing.embeddings.items():
        if name in tensors:
            known[name] = _as_table(tensors[name], table.encoding, table.shape)
    copies: list[Copy] = exact_recipes(known, model)
    return list(copies)


def _as_table(stored: StoredTensor, encoding: str, shape: tuple[int, int]) -> StoredTensor:
    try:
        expected = shape[0] * row_bytes(encoding, shape[1])
    except ValueError as error:
        raise CheckpointError(f"{stored.path} has a table in an encoding it cannot have: {error}. Pack it again.") from error
    if expected != stored.num_bytes:
        raise CheckpointError(
            f"{stored.path} has {stored.num_bytes:,} bytes of {stored.name}, where {encoding} {list(shape)} takes "
            f"{expected:,}. Pack the original again: layermesh quantize."
        )
    return replace(stored, encoding=encoding, shape=shape)


def _replace(model: nn.Module, name: str, form: QuantForm, tile: int, bounds: tuple[int, ...]) -> None:
    try:
        linear = model.get_submodule(name)
    except AttributeError as error:
        raise _misfit(name, "the model has no such module") from error
    if not isinstance(linear, nn.Linear):
        raise _misfit(name, f"the model has a {type(linear).__name__} there")
    if linear.in_features % form.group or (bounds and bounds[-1] != linear.out_features):
        raise _misfit(name, f"the model's has {linear.out_features} × {linear.in_features} weights")
    bias: nn.Parameter | None = linear.bias
    packed: nn.Module = (
        PackedHead(linear.in_features, bounds, form, tile, bias)
        if bounds
        else QuantLinear(linear.in_features, linear.out_features, form, tile, bias)
    )
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._modules[leaf] = packed.eval()


def _misfit(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"the pack has a linear layer {name[:120]!r} that does not fit: {why}. Its config.json does not belong to its "
        "weights: pack the original again."
    )
