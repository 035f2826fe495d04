"""Dividing a model's parameters into the blocks of its weight stream."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from layermesh.shared.checkpoints.gguf_gpt_oss import ARCHITECTURE as GPT_OSS
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import CheckpointError, UsageError
from layermesh.shared.model.blocks import (
    ALIGNMENT,
    LARGE_BYTES,
    PAGE_BYTES,
    Block,
    BlockTable,
    BlockTensor,
    aligned,
)
from layermesh.shared.model.definition import ModelDefinition, compute_buffers
from layermesh.shared.model.gpt_oss_recipes import gpt_oss_recipes
from layermesh.shared.model.lean import make_lean, make_lean_as_stored
from layermesh.shared.model.packed import packed_recipes, quantise_definition
from layermesh.shared.model.quant_parts import ModelUse, check_numbers
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, as_recipes, is_ignored, sources_of, targets_of
from layermesh.shared.model.separable import separable_modules
from layermesh.shared.model.stored_quants import stored_recipes
from layermesh.shared.model.unused_tensors import find_unused
from layermesh.shared.quant.linear import packed_names
from layermesh.shared.transformers_api import dtype_plan


def build_block_table(
    checkpoint: Checkpoint,
    definition: ModelDefinition,
    *,
    fast_path: bool = False,
    treatment: Callable[[str], object] = lambda _name: None,
) -> BlockTable:
    """Divide the parameters of a model into blocks, and compute its buffers that no checkpoint holds.

    With `fast_path` its layers are replaced by lean ones where they have the shape for it, and matrices with the same
    `treatment` (asked with their names) joined; a packed model has its own shape already. Raises CheckpointError for tensors
    that are missing or of the wrong shape, UsageError for a packed model that has lean layers and should not.
    """
    packing = definition.packing
    if packing is None:
        recipes = _recipes(checkpoint, definition)
        names = checkpoint.tensors if checkpoint.gguf_architecture is None else ()
        unused = find_unused(names, recipes, definition.model, definition.layers_path)
        lean = make_lean(definition, recipes, treatment) if fast_path else recipes
        return replace(_Sorter(definition, lean).table(checkpoint), unused=unused)
    if packing.fused:
        if not fast_path:
            raise UsageError(f"{checkpoint.path} was packed for the fast path. Pack the original again with --no-fast-path.")
        make_lean_as_stored(definition, checkpoint.tensors)
    quantise_definition(definition, packing)
    return _Sorter(definition, _recipes(checkpoint, definition)).table(checkpoint)


def _recipes(checkpoint: Checkpoint, definition: ModelDefinition) -> list[Recipe]:
    if definition.packing is not None:
        packed = packed_recipes(checkpoint.tensors, definition.model, definition.packing)
        check_numbers(packed, (), definition.model, ModelUse(definition.model, definition.towers))
        return packed
    if checkpoint.gguf_architecture is None:
        return stored_recipes(checkpoint.tensors, definition.model, definition.scheme, definition.towers)
    if checkpoint.gguf_architecture == GPT_OSS:
        return gpt_oss_recipes(checkpoint, definition.model)
    from layermesh.shared.checkpoints.gguf_mapping import map_gguf  # the gguf package is slow to import

    recipes: list[Recipe] = []
    for group in map_gguf(checkpoint, definition.model):
        sources = tuple(checkpoint.tensors[name] for name in group.sources)
        if group.plain:
            recipes.append(Copy(sources[0], group.targets[0]))
        else:
            shapes = dict(zip(group.targets, group.shapes, strict=True))
            made = as_recipes(sources, shapes, group.convert, torch.float32)
            if any(isinstance(recipe, Conversion) for recipe in made):
                group.check_made_shapes()
            recipes += made
    return recipes


class _Sorter:
    """Puts every parameter into its block."""

    def __init__(self, definition: ModelDefinition, recipes: list[Recipe]) -> None:
        self.definition = definition
        self.recipes_of: dict[str, list[Recipe]] = defaultdict(list)
        for recipe in recipes:
            for target in targets_of(recipe):
                self.recipes_of[target].append(recipe)
        self.lookup_weights = {f"{path}.weight": path for path in definition.lookups}
        self.packed = packed_names(definition.model)

    def table(self, checkpoint: Checkpoint) -> BlockTable:
        contents: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        lookups: dict[str, StoredTensor] = {}
        missing: list[str] = []
        for names in self._shared_names():
            source = next((name for name in names if name in self.recipes_of), None)
            places = {self._place(name) for name in names}
            if places == {"tower"}:
                continue
            if source is None:
                missing += names[:1]
                continue
            for place in self._settle(places, source, names, lookups):
                contents[place].append((source, tuple(name for name in names if place in ("rest", self._place(name)))))
        compute_buffers(self.definition.model, self._judge(missing, checkpoint))
        return BlockTable(
            rest=self._block("rest", None, contents["rest"]),
            layers=tuple(self._block(f"layer {i}", i, contents[str(i)]) for i in range(self.definition.num_layers)),
            head=self._block("head", None, contents["head"]),
            lookups=lookups,
            pieces=tuple(self._pieces(contents)),
        )

    def _pieces(self, contents: dict[str, list[tuple[str, tuple[str, ...]]]]) -> Iterable[Block]:
        packing = self.definition.packing
        for number, rows in enumerate(itertools.pairwise(packing.head_bounds if packing else ())):
            block = self._block(f"head [{rows[0]}, {rows[1]})", None, contents[f"head {number}"])
            yield replace(block, rows=rows)

    def _shared_names(self) -> list[tuple[str, ...]]:
        """The names of each parameter or persistent buffer; several where modules share it."""
        names: dict[int, list[str]] = defaultdict(list)
        state = self.definition.model.state_dict(keep_vars=True)
        for name, tensor in state.items():
            tied = self.definition.tied.get(name)
            names[id(state.get(tied, tensor) if tied else tensor)].append(name)
        return [group for shared in names.values() for group in self._apart(shared)]

    def _apart(self, names: list[str]) -> list[tuple[str, ...]]:
        """Divide names that share a parameter by the tensors that the checkpoint has for them, as transformers unties."""
        stored = [name for name in names if name in self.recipes_of]
        others = [name for name in names if name not in self.recipes_of]
        return [(*stored[:1], *others), *((name,) for name in stored[1:])]

    def _place(self, name: str) -> str:
        if name in self.lookup_weights:
            return "lookup"
        if name == f"{self.definition.head}.weight":
            return "head"
        if name.startswith(f"{self.definition.head}.pieces."):
            return f"head {name.removeprefix(f'{self.definition.head}.pieces.').partition('.')[0]}"
        if any(name.startswith(f"{tower}.") for tower in self.definition.towers):
            return "tower"
        inside = name.removeprefix(f"{self.definition.layers_path}.")
        return inside.partition(".")[0] if inside != name else "rest"

    def _settle(
        self, places: set[str], source: str, names: tuple[str, ...], lookups: dict[str, StoredTensor]
    ) -> tuple[str, ...]:
        """Return the blocks that hold a parameter used in `places`; note the tables of which only rows are read."""
        places = places - {"tower"}
        recipes = self.recipes_of[source]
        if "lookup" in places and places <= {"lookup", "head"} and len(recipes) == 1:
            recipe = recipes[0]
            if isinstance(recipe, Copy) and recipe.rows is None:
                lookups.update({self.lookup_weights[name]: recipe.source for name in names if name in self.lookup_weights})
                return tuple(places - {"lookup"})
        if len(places) == 1 and "lookup" not in places:
            return tuple(places)
        return ("rest",)

    def _judge(self, missing: list[str], checkpoint: Checkpoint) -> frozenset[str]:
        """Return the missing names that are buffers, to be computed; parameters must not be missing."""
        buffers = {name for name, _ in self.definition.model.named_buffers()} - self.packed
        model = self.definition.model
        lost = [name for name in missing if name not in buffers and not is_ignored(name, model)]
        if lost:
            some = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            raise CheckpointError(
                f"{checkpoint.path} lacks tensors that {type(model).__name__} needs: {some}. "
                "The download may be incomplete: fetch it again."
            )
        return frozenset(name for name in missing if name in buffers)

    def _block(self, name: str, layer: int | None, contents: list[tuple[str, tuple[str, ...]]]) -> Block:
        state = self.definition.model.state_dict()
        offset = 0
        tensors = []
        recipes: dict[int, Recipe] = {}
        in_place = sum(state[key].nbytes for key, _ in contents) >= LARGE_BYTES
        for key, names in sorted(contents, key=lambda item: self._file_position(item[0])):
            parameter = state[key]
            dtype = self._dtype(key, parameter)
            if in_place:
                offset = self._congruent(offset, key, dtype)
            tensor = BlockTensor(key, names, tuple(parameter.shape), dtype, offset)
            offset = aligned(offset + tensor.num_bytes)
            tensors.append(tensor)
            recipes |= {id(recipe): recipe for recipe in self.recipes_of[key]}
        return Block(name, layer, tuple(tensors), tuple(recipes.values()), modules=self._modules(layer))

    def _modules(self, layer: int | None) -> tuple[str, ...]:
        if layer is None:
            return ()
        inside = separable_modules(self.definition.layers[layer])
        return tuple(f"{self.definition.layers_path}.{layer}.{name}" for name in inside)

    def _file_position(self, name: str) -> tuple[str, int]:
        source = sources_of(self.recipes_of[name][0])[0]
        return str(source.path), source.offset

    def _congruent(self, offset: int, name: str, dtype: torch.dtype) -> int:
        """Return the first place from `offset` on that lies to a page as the file does, so that it can be read in place.

        Where the file lies badly for kernels, or other values are stored than computed with, `offset` is as good as any.
        """
        recipe = self.recipes_of[name][0]
        if not isinstance(recipe, Copy) or recipe.rows is not None or recipe.start or recipe.source.dtype != dtype:
            return offset
        if recipe.source.offset % ALIGNMENT:
            return offset
        return offset + (recipe.source.offset - offset) % PAGE_BYTES

    def _dtype(self, name: str, parameter: torch.Tensor) -> torch.dtype:
        """The dtype to compute in: the parameter's own, or float32 where the family asks for it."""
        if name in self.packed:
            return parameter.dtype
        plan = dtype_plan(self.definition.model, parameter.dtype)
        kept = [dtype for pattern, dtype in plan.items() if pattern in name]
        return kept[0] if kept and parameter.dtype.is_floating_point else parameter.dtype
