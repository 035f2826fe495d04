"""Layers in pieces: one linear layer at a time, for blocks too large to have two of them in memory."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from layermesh.shared.model.blocks import ALIGNMENT, PAGE_BYTES, Block, BlockTensor
from layermesh.shared.model.recipes import Conversion

LEAST_BYTES = 64 << 20  # smaller layers stay whole: small pieces leave the disk idle between them
MOST_CORE = 1 / 16  # of a layer, that may be left over when its linear layers are taken out


def split_layer(block: Block) -> tuple[Block, ...]:
    """Return a layer as its core, which is small and must stay, and a piece for each of its linear layers, in order.

    One that is small, is converted while loading, or consists of other things comes back as it is.
    """
    groups = {module: [tensor for tensor in block.tensors if tensor.module == module] for module in block.modules}
    taken = {tensor.key for tensors in groups.values() for tensor in tensors}
    rest = [tensor for tensor in block.tensors if tensor.key not in taken]
    left_over = sum(tensor.num_bytes for tensor in rest)
    converted = any(isinstance(recipe, Conversion) for recipe in block.recipes)
    if converted or not groups or block.loaded_bytes < LEAST_BYTES or left_over > MOST_CORE * block.loaded_bytes:
        return (block,)
    core = replace(_part(block, f"{block.name} core", rest, None), is_core=True)
    return (core, *(_part(block, f"{block.name} {module}", tensors, module) for module, tensors in groups.items()))


def _part(block: Block, name: str, tensors: Sequence[BlockTensor], module: str | None) -> Block:
    keys = {tensor.key for tensor in tensors}
    recipes = tuple(recipe for recipe in block.recipes if not isinstance(recipe, Conversion) and recipe.target in keys)
    return replace(block, name=name, tensors=_close_up(tensors), recipes=recipes, modules=(), module=module)


def _close_up(tensors: Collection[BlockTensor]) -> tuple[BlockTensor, ...]:
    """Move tensors together, each to a place that lies to a page as before: so it lies in the file, too."""
    placed: list[BlockTensor] = []
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        offset = end + (tensor.offset - end) % (PAGE_BYTES if tensor.num_bytes >= PAGE_BYTES else ALIGNMENT)
        placed.append(replace(tensor, offset=offset))
        end = -(-(offset + tensor.num_bytes) // ALIGNMENT) * ALIGNMENT
    return tuple(placed)
