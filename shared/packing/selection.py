"""Which parameters of a model are packed, and in which form."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from torch import nn

from layermesh.shared.errors import UnsupportedModelError
from layermesh.shared.model.blocks import Block, BlockTable, BlockTensor
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.packing.parameters import ParameterReader
from layermesh.shared.packing.request import PackRequest
from layermesh.shared.quant.choosing import choose_form, head_size
from layermesh.shared.quant.forms import ROW_MULTIPLE, QuantForm

SMALLEST_ELEMENTS: Final = 2048  # below that a matrix is not worth a scale
_ROUTERS: Final = frozenset({"gate", "router", "shared_expert_gate", "wg"})  # a wrong choice of expert costs more than they do
_MOST_EXPERTS: Final = 1024
# Small models suffer more from 4 bits, and some matrices more than others (stories15M: 90.3 % the same choice of token with all
# in 4 bits, 92.1 with the values of the attention in 8, 94.2 with all of these).
SMALL_MODEL: Final = 500_000_000  # weights in its layers
_SENSITIVE_IF_SMALL: Final = frozenset({
    "v_proj", "o_proj", "down_proj", "qkv_proj", "out_proj", "dense_4h_to_h", "c_proj", "fc2", "w2", "wo",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """The forms of what is packed, by the name of the linear layer's weight, and the rows at which the head is cut."""

    forms: dict[str, QuantForm]
    head: BlockTensor | None
    head_form: QuantForm | None
    head_bounds: tuple[int, ...]


def select(definition: ModelDefinition, table: BlockTable, request: PackRequest) -> Selection:
    """Decide for every parameter of `definition`.

    Raises UnsupportedModelError for a model of which more than half of the layers' weights cannot be packed.
    """
    linears = {f"{path}.weight": module for path, module in definition.model.named_modules() if type(module) is nn.Linear}
    forms: dict[str, QuantForm] = {}
    left: Counter[str] = Counter()
    sensitive = sensitive_modules(definition)
    for block in table.layers:
        reader = ParameterReader(block.recipes)
        for tensor in block.tensors:
            bits = 8 if _module(tensor) in sensitive else request.bits
            form = _form(tensor, reader, bits, request.group_size) if _is_layer(tensor, linears) else None
            if form is not None:
                forms[tensor.key] = form
            else:
                left[_owner(definition, tensor)] += prod(tensor.shape)
    _check_worth(definition, table, left)
    head = next((tensor for tensor in table.head.tensors if f"{definition.head}.weight" in tensor.names), None)
    head_form = None
    if head is not None:
        reader = ParameterReader(table.head.recipes)
        is_delicate = _is_small(definition) or reader.is_quantised(head.key)  # and not to be rounded coarsely once more
        head_form = _form(head, reader, *head_size(request.bits, request.group_size, is_delicate=is_delicate))
    bounds = _bounds(head, head_form, table, forms) if head is not None and head_form is not None else ()
    return Selection(forms, head if bounds else None, head_form if bounds else None, bounds)


def sensitive_modules(definition: ModelDefinition) -> frozenset[str]:
    """Return the last names of the linear layers that take 8 bits in any case."""
    return _SENSITIVE_IF_SMALL if _is_small(definition) else frozenset()


def _is_small(definition: ModelDefinition) -> bool:
    return sum(parameter.numel() for parameter in definition.layers.parameters()) < SMALL_MODEL


def block_bytes(block: Block, forms: dict[str, QuantForm]) -> int:
    """Return about how large a block will be once it is packed."""
    return sum(
        forms[tensor.key].num_bytes(tensor.shape[0], tensor.shape[1]) if tensor.key in forms else tensor.num_bytes
        for tensor in block.tensors
    )


def _is_layer(tensor: BlockTensor, linears: dict[str, nn.Linear]) -> bool:
    """Whether it is the weight of one plain linear layer, and not of a router or a tiny one."""
    linear = linears.get(tensor.key)
    if linear is None or tensor.names != (tensor.key,) or prod(tensor.shape) < SMALLEST_ELEMENTS:
        return False
    return _module(tensor) not in _ROUTERS or linear.out_features > _MOST_EXPERTS


def _module(tensor: BlockTensor) -> str:
    """The last part of the name of the module that a parameter is of."""
    return tensor.key.rpartition(".")[0].rpartition(".")[2]


def _form(tensor: BlockTensor, reader: ParameterReader, bits: int, group: int) -> QuantForm | None:
    """The form that keeps the quants there are, else the one asked for; 8 bits for quants that no form keeps."""
    kept = reader.kept_form(tensor.key)
    if kept is not None:
        return kept
    return choose_form(8 if reader.is_quantised(tensor.key) else bits, group, tensor.shape[1])


def _owner(definition: ModelDefinition, tensor: BlockTensor) -> str:
    module = definition.model.get_submodule(tensor.names[0].rpartition(".")[0])
    return type(module).__name__


def _check_worth(definition: ModelDefinition, table: BlockTable, left: "Counter[str]") -> None:
    total = sum(prod(tensor.shape) for block in table.layers for tensor in block.tensors)
    if 2 * sum(left.values()) > total:
        names, share = ", ".join(name for name, _ in left.most_common(3)), sum(left.values()) / total
        raise UnsupportedModelError(
            f"{type(definition.model).__name__} keeps {share:.0%} of its layers' weights in {names}, which "
            "are no plain linear layers and cannot be packed. Run it without --quantize."
        )


def _bounds(head: BlockTensor, form: QuantForm, table: BlockTable, forms: dict[str, QuantForm]) -> tuple[int, ...]:
    """Cut the head into pieces about as large as the largest layer."""
    rows, columns = head.shape
    piece_bytes = max(block_bytes(block, forms) for block in table.layers)
    num_pieces = max(round(form.num_bytes(rows, columns) / piece_bytes), 1)
    each = -(-rows // num_pieces // ROW_MULTIPLE) * ROW_MULTIPLE
    return (*range(0, rows, each), rows)


def packed_parameters(selection: Selection) -> Iterator[tuple[str, QuantForm]]:
    """Give the dotted name and the form of each linear layer that is packed."""
    for weight, form in selection.forms.items():
        yield weight.removesuffix(".weight"), form
