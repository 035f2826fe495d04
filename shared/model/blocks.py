"""The weight stream: which parameters make up each block, and where they lie in its buffer."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor, stored_rows
from layermesh.shared.errors import CheckpointError, UsageError
from layermesh.shared.model.definition import ModelDefinition, compute_buffers
from layermesh.shared.model.lean import make_lean, make_lean_as_stored
from layermesh.shared.model.packed import packed_recipes, quantise_definition
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, as_recipes, find_recipes, is_ignored
from layermesh.shared.model.separable import separable_modules
from layermesh.shared.model.stored_quants import quantised_recipes
from layermesh.shared.quant.linear import packed_names

NUM_READERS = 8  # that load a block
READ_BYTES = 4 << 20  # one read; several in flight keep a solid-state disk busy
LEAST_READ_BYTES = 1 << 18  # what a small block's reads may shrink to, so that every reader has one
ALIGNMENT = 64  # bytes; what torch's own allocations keep to, and kernels may round differently off it
PAGE_BYTES = 4096  # what reads past the page cache keep to, in the file and in memory
LARGE_BYTES = 1 << 20  # blocks from this size on are laid out to be read in place, for which some room goes unused


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """One tensor of a block: `offset` bytes into its buffer, bound to each of the model's `names` for it.

    `key` is the parameter that recipes call it by; where a head shares the embedding's table, that is the embedding's name.
    """

    key: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def module(self) -> str | None:
        """The dotted name of the module whose own it is; None where several share it."""
        return self.names[0].rpartition(".")[0] if len(self.names) == 1 else None

    @property
    def num_bytes(self) -> int:
        """Size in the buffer, without padding."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """One entry of the weight stream: the parameters that come and go together.

    `layer` is the number of the decoder layer, None for anything else. `rows` is the part of the output projection that a
    piece of the head computes, `module` the dotted name of the linear layer that a piece of a layer is. `modules` are those
    that could be pieces, in order; `is_core` tells what is left of a layer without them, which is small and always stays.
    """

    name: str
    layer: int | None
    tensors: tuple[BlockTensor, ...]
    recipes: tuple[Recipe, ...] = field(repr=False)
    rows: tuple[int, int] | None = None
    module: str | None = None
    modules: tuple[str, ...] = ()
    is_core: bool = False

    @property
    def loaded_bytes(self) -> int:
        """Size of the buffer that holds the block ready to compute with."""
        return max((_aligned(tensor.offset + tensor.num_bytes) for tensor in self.tensors), default=0)

    @property
    def stored_bytes(self) -> int:
        """Bytes to read from disk for it."""
        return sum(source.num_bytes for source in self._sources())

    @property
    def scratch_bytes(self) -> int:
        """Memory that conversions take beside the buffer while the block is loaded."""
        largest = sorted((self._conversion_bytes(recipe) for recipe in self.recipes), reverse=True)
        return sum(largest[:NUM_READERS])

    @property
    def read_bytes(self) -> int:
        """Most bytes of it that are read at a time."""
        return min(max(self.stored_bytes // (2 * NUM_READERS), LEAST_READ_BYTES), READ_BYTES)

    @property
    def is_misplaced(self) -> bool:
        """Whether some of it lies in its file where it cannot be read in place from."""
        return any(source.offset % ALIGNMENT for source in self._sources())

    @property
    def needs_decoding(self) -> bool:
        """Whether some of its tensors are not stored the way they are computed with."""
        dtypes = {tensor.dtype for tensor in self.tensors}
        return any(source.dtype not in dtypes for source in self._sources())

    def _sources(self) -> Iterable[StoredTensor]:
        for recipe in self.recipes:
            yield from recipe.sources if isinstance(recipe, Conversion) else (recipe.source,)

    @staticmethod
    def _conversion_bytes(recipe: Recipe) -> int:
        if isinstance(recipe, Copy):
            return 0
        return 3 * 4 * max(sum(source.num_elements for source in recipe.sources), recipe.num_made)


@dataclass(frozen=True, slots=True)
class BlockTable:
    """All blocks of a model in the order a sweep needs them, and the tables that are read row by row.

    `rest` is what stays: norms, position tables, parameters that several layers share. `lookups` maps an embedding's dotted
    name to the stored table whose rows it returns. A packed head is stored in `pieces`, and `head` is empty then.
    """

    rest: Block
    layers: tuple[Block, ...]
    head: Block
    lookups: dict[str, StoredTensor]
    pieces: tuple[Block, ...] = ()

    @property
    def heads(self) -> tuple[Block, ...]:
        """The blocks behind the layers: the head, its pieces, or nothing where it is part of `rest`."""
        return (*((self.head,) if self.head.tensors else ()), *self.pieces)

    @property
    def stream(self) -> tuple[Block, ...]:
        """The blocks of one sweep in order: the layers, then the head."""
        return (*self.layers, *self.heads)


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
        return _Sorter(definition, make_lean(definition, recipes, treatment) if fast_path else recipes).table(checkpoint)
    if packing.fused:
        if not fast_path:
            raise UsageError(f"{checkpoint.path} was packed for the fast path. Pack the original again with --no-fast-path.")
        make_lean_as_stored(definition, checkpoint.tensors)
    quantise_definition(definition, packing)
    return _Sorter(definition, _recipes(checkpoint, definition)).table(checkpoint)


def split_head(head: Block, max_bytes: int) -> tuple[Block, ...]:
    """Return `head` in pieces of at most `max_bytes`, each some rows of the projection; itself if it is small enough.

    A head that is converted while loading, or of which one row is larger than that, is not divided.
    """
    if head.loaded_bytes <= max_bytes or len(head.tensors) != 1 or len(head.recipes) != 1:
        return (head,)
    (tensor,), (recipe,) = head.tensors, head.recipes
    num_rows = tensor.shape[0]
    rows_each = max_bytes // (tensor.num_bytes // num_rows) // ALIGNMENT * ALIGNMENT
    if isinstance(recipe, Conversion) or recipe.rows is not None or rows_each == 0:
        return (head,)
    bounds = [*range(0, num_rows, rows_each), num_rows]
    return tuple(_head_piece(head, tensor, recipe, start, end) for start, end in itertools.pairwise(bounds))


def _head_piece(head: Block, tensor: BlockTensor, recipe: Copy, start: int, end: int) -> Block:
    return replace(
        head,
        name=f"{head.name} [{start}, {end})",
        tensors=(replace(tensor, shape=(end - start, *tensor.shape[1:])),),
        recipes=(replace(recipe, source=stored_rows(recipe.source, start, end)),),
        rows=(start, end),
    )


def _recipes(checkpoint: Checkpoint, definition: ModelDefinition) -> list[Recipe]:
    if definition.packing is not None:
        return packed_recipes(checkpoint.tensors, definition.model, definition.packing)
    if definition.scheme is not None:
        return quantised_recipes(checkpoint.tensors, definition.model, definition.scheme)
    if checkpoint.gguf_architecture is None:
        return find_recipes(checkpoint.tensors, definition.model)
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
            for target in recipe.targets if isinstance(recipe, Conversion) else (recipe.target,):
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
            offset = _aligned(offset + tensor.num_bytes)
            tensors.append(tensor)
            recipes |= {id(recipe): recipe for recipe in self.recipes_of[key]}
        return Block(name, layer, tuple(tensors), tuple(recipes.values()), modules=self._modules(layer))

    def _modules(self, layer: int | None) -> tuple[str, ...]:
        if layer is None:
            return ()
        inside = separable_modules(self.definition.layers[layer])
        return tuple(f"{self.definition.layers_path}.{layer}.{name}" for name in inside)

    def _file_position(self, name: str) -> tuple[str, int]:
        recipe = self.recipes_of[name][0]
        source = recipe.sources[0] if isinstance(recipe, Conversion) else recipe.source
        return str(source.path), source.offset

    def _congruent(self, offset: int, name: str, dtype: torch.dtype) -> int:
        """Return the first place from `offset` on that lies to a page as the file does, so that it can be read in place.

        Where the file lies badly for kernels, or other values are stored than computed with, `offset` is as good as any.
        """
        recipe = self.recipes_of[name][0]
        if isinstance(recipe, Conversion) or recipe.rows is not None or recipe.start or recipe.source.dtype != dtype:
            return offset
        if recipe.source.offset % ALIGNMENT:
            return offset
        return offset + (recipe.source.offset - offset) % PAGE_BYTES

    def _dtype(self, name: str, parameter: torch.Tensor) -> torch.dtype:
        """The dtype to compute in: the parameter's own, or float32 where the family asks for it."""
        if name in self.packed:
            return parameter.dtype
        plan: dict[str, Any] = self.definition.model._get_dtype_plan(parameter.dtype)
        kept = [dtype for pattern, dtype in plan.items() if pattern in name]
        return kept[0] if kept and parameter.dtype.is_floating_point else parameter.dtype


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
