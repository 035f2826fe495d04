"""How the tensors of a checkpoint become the parameters of a model.

Most are copied as they are. Some checkpoints keep apart what the modules hold fused (one tensor per expert, say), or the
other way round; transformers knows each family's conversion, and its own operations do the work here, one recipe at a time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from layermesh.shared.checkpoints.decoding import decode
from layermesh.shared.checkpoints.mxfp4 import GROUP_BYTES, GROUP_VALUES, decode_mxfp4
from layermesh.shared.checkpoints.rows import Combine, RowMove, find_row_moves
from layermesh.shared.checkpoints.tensors import StoredTensor, as_matrix, stored_rows
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.meta_device import LightMeta
from layermesh.shared.transformers_api import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    get_model_conversion_mapping,
    ignored_when_missing,
    rename_source_key,
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One stored tensor, decoded into a part of a parameter.

    The part is contiguous and begins `start` elements in, or, where `rows` is given (int64 `[source rows]`), made of those
    rows of the parameter. `source` is the tensor with that `number` among those its conversion takes, from its row `first` on.
    """

    source: StoredTensor
    target: str
    start: int = 0
    rows: torch.Tensor | None = field(default=None, compare=False)
    number: int = 0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Conversion:
    """Stored tensors that become parameters by way of `combine`, which gets them decoded to `dtype`, in order.

    `dtype` None is the parameters' own. `num_made` is how many values come into being in between, if more than are stored.
    """

    sources: tuple[StoredTensor, ...]
    targets: tuple[str, ...]
    combine: Combine
    dtype: torch.dtype | None = None
    num_made: int = 0


@dataclass(frozen=True, slots=True)
class TransposedCopy:
    """Stored matrices, one for each expert, decoded into columns of a parameter `[experts, columns, width]`.

    Row r of a matrix becomes column `first + step * r` of its expert. `sources` is one tensor `[experts, rows, columns]`, or
    two in MXFP4: groups `[experts, rows, groups, 16]` and their scales `[experts, rows, groups]`.
    """

    sources: tuple[StoredTensor, ...]
    target: str
    first: int = 0
    step: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, rows and columns of the decoded matrices."""
        experts, rows, columns = self.sources[0].shape[:3]
        return experts, rows, columns * (GROUP_VALUES if self.is_mxfp4 else 1)

    @property
    def is_mxfp4(self) -> bool:
        """Whether values and scales lie in tensors of their own."""
        return len(self.sources) > 1

    def parts(self, max_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Return ranges of rows as (expert, start, end), each of at most `max_bytes` once decoded to float32, or one row."""
        experts, rows, columns = self.shape
        step = max(max_bytes // (4 * max(columns, 1)), 1)
        for expert in range(experts):
            for start in range(0, rows, step):
                yield expert, start, min(start + step, rows)

    def stored(self, expert: int, start: int, end: int) -> tuple[StoredTensor, ...]:
        """Return where the rows `[start, end)` of an expert lie, one entry for each source."""
        first = expert * self.shape[1]
        return tuple(stored_rows(_by_rows(source, self.shape), first + start, first + end) for source in self.sources)

    def place(self, raw: Sequence[torch.Tensor], part: tuple[int, int, int], parameter: torch.Tensor) -> None:
        """Decode `raw`, the bytes of what `stored` returned for `part`, into its columns of `parameter`.

        Raises CheckpointError for scales that are no numbers.
        """
        expert, start, end = part
        decoded = torch.empty(end - start, self.shape[2], dtype=parameter.dtype)
        if self.is_mxfp4:
            self._decode_mxfp4(raw, decoded)
        else:
            decode(raw[0], self.sources[0].encoding, decoded)
        last = self.first + self.step * (end - 1)
        parameter[expert, :, self.first + self.step * start : last + 1 : self.step] = decoded.t()

    def _decode_mxfp4(self, raw: Sequence[torch.Tensor], decoded: torch.Tensor) -> None:
        try:
            decode_mxfp4(raw[0].view(-1, GROUP_BYTES), raw[1], decoded)
        except ValueError as error:
            scales = self.sources[1]
            raise CheckpointError(f"tensor {scales.name} in {scales.path.name} has {error}. Fetch the file again.") from error


Recipe = Copy | Conversion | TransposedCopy


def sources_of(recipe: Recipe) -> tuple[StoredTensor, ...]:
    """Return the stored tensors that a recipe reads."""
    return (recipe.source,) if isinstance(recipe, Copy) else recipe.sources


def targets_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the parameters that a recipe fills, or parts of which."""
    return recipe.targets if isinstance(recipe, Conversion) else (recipe.target,)


def _by_rows(source: StoredTensor, shape: tuple[int, int, int]) -> StoredTensor:
    """Return `source` as a matrix with a row for each row of every expert."""
    rows = shape[0] * shape[1]
    return replace(source, shape=(rows, source.num_elements // max(rows, 1)))


@dataclass(slots=True)
class _Gathered:
    """What one converter collects: its sources in the order transformers would hand them over."""

    converter: WeightConverter
    target: str
    sources: list[tuple[str, StoredTensor]]

    def likeness(self, parameters: Mapping[str, torch.Tensor]) -> object:
        """What groups have in common that are converted in the same way."""
        shapes = tuple((pattern, source.shape) for pattern, source in self.sources)
        return id(self.converter), shapes, parameters[self.target].shape

    def combine(self, tensors: Sequence[torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
        converter: Any = deepcopy(self.converter)
        for (pattern, source), tensor in zip(self.sources, tensors, strict=True):
            converter.add_tensor(self.target, source.name, pattern, tensor)
        converted = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


class NameMap:
    """Which parameter of a model a stored tensor goes to, as transformers renames and converts them.

    `by_pattern` has the converters by the patterns of the names that they collect.
    """

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self.parameters: dict[str, torch.Tensor] = model.state_dict()
        self.by_pattern = {pattern: converter for converter in self._converters for pattern in converter.source_patterns}

    def find(self, name: str) -> tuple[str, str | None]:
        """Return what `name` becomes, which need not be a parameter, and the pattern of a converter that collects it."""
        target, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.parameters)
        if target not in self.parameters and name in self.parameters:
            target, pattern = rename_source_key(name, [], [], self._prefix, self.parameters)
        return target, pattern

    def target(self, name: str) -> str | None:
        """Return the parameter that a tensor called `name` goes to; None where the model has no use for it."""
        found = self.find(name)[0]
        return found if found in self.parameters else None


def find_recipes(tensors: dict[str, StoredTensor], model: Any) -> list[Recipe]:
    """Return how `tensors` of a Hugging Face checkpoint fill the parameters of `model` (on the meta device).

    Stored tensors that the model has no use for are passed over. Raises CheckpointError for a shape that does not fit.
    """
    names = NameMap(model)
    parameters = names.parameters
    copies: dict[str, Copy] = {}  # where two stored names become one, the first counts
    gathered: dict[str, _Gathered] = {}
    for name in sorted(tensors, key=dot_natural_key):
        target, pattern = names.find(name)
        if target not in parameters:
            continue
        if pattern is None:
            _check_shape(tensors[name], parameters[target])
            copies.setdefault(target, Copy(tensors[name], target))
        else:
            group = gathered.setdefault(target, _Gathered(names.by_pattern[pattern], target, []))
            group.sources.append((pattern, tensors[name]))
    recipes: list[Recipe] = list(copies.values())
    alike: dict[object, list[Recipe]] = {}  # layers are built alike, and an expert model has thousands of tensors
    for group in gathered.values():
        likeness = group.likeness(parameters)
        if likeness in alike:
            recipes += [_transfer(recipe, group) for recipe in alike[likeness] if isinstance(recipe, Copy)]
            continue
        converted = _convert(group, model, parameters)
        recipes += converted
        if all(isinstance(recipe, Copy) and recipe.target == group.target for recipe in converted):
            alike[likeness] = converted
    return recipes


def exact_recipes(tensors: Mapping[str, StoredTensor], model: Any) -> list[Copy]:
    """Return how `tensors` fill the parameters of the same names; raises CheckpointError for a shape that does not fit."""
    parameters: dict[str, torch.Tensor] = model.state_dict()
    known = [name for name in tensors if name in parameters]
    for name in known:
        _check_shape(tensors[name], parameters[name])
    return [Copy(tensors[name], name) for name in known]


def as_recipes(
    sources: Sequence[StoredTensor], shapes: Mapping[str, tuple[int, ...]], combine: Combine, dtype: torch.dtype | None
) -> list[Recipe]:
    """Return how `combine` makes parameters of `shapes` from `sources`: by copying rows, if that is all it does."""
    moves = find_row_moves(combine, [source.shape for source in sources], shapes)
    if moves is None:
        return [Conversion(tuple(sources), tuple(shapes), combine, dtype)]
    return [_copy(move, sources[move.source]) for move in moves]


def _copy(move: RowMove, source: StoredTensor) -> Copy:
    part = stored_rows(as_matrix(source), move.first, move.last)
    begin = move.start
    if begin is None:
        return Copy(part, move.target, rows=move.rows, number=move.source, first=move.first)
    return Copy(part, move.target, begin * part.shape[1], number=move.source, first=move.first)


def _transfer(recipe: Copy, group: _Gathered) -> Copy:
    """Return for `group` the copy that `recipe` is for one like it."""
    source = group.sources[recipe.number][1]
    part = stored_rows(as_matrix(source), recipe.first, recipe.first + recipe.source.shape[0])
    return replace(recipe, source=part, target=group.target)


def _convert(group: _Gathered, model: Any, parameters: dict[str, torch.Tensor]) -> list[Recipe]:
    sources = [source for _, source in group.sources]
    try:
        blank = [torch.empty(source.shape, device="meta") for source in sources]
        with LightMeta():
            made = {name: tuple(tensor.shape) for name, tensor in group.combine(blank, model).items()}
    except Exception as error:
        names = ", ".join(source.name for source in sources[:3])
        raise CheckpointError(f"{names} … do not combine into {group.target}: {error}. Files may be missing.") from error
    shapes = {name: shape for name, shape in made.items() if name in parameters}
    for name, shape in shapes.items():
        if tuple(parameters[name].shape) != shape:
            raise CheckpointError(
                f"{name} would have the shape {shape} and the model needs {tuple(parameters[name].shape)}: "
                "config.json and the weights do not belong together, or a file is missing."
            )
    return as_recipes(sources, shapes, lambda given: group.combine(given, model), None)


def _check_shape(source: StoredTensor, parameter: torch.Tensor) -> None:
    if source.shape != tuple(parameter.shape):
        raise CheckpointError(
            f"tensor {source.name} in {source.path.name} has the shape {source.shape} and the model needs "
            f"{tuple(parameter.shape)}: config.json and the weights do not belong together."
        )


def is_ignored(name: str, model: Any) -> bool:
    """Tell whether transformers does without the parameter `name` when a checkpoint lacks it."""
    return any(re.search(pattern, name) for pattern in ignored_when_missing(model))
