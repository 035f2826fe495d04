"""How the tensors of a checkpoint become the parameters of a model.

Most are copied as they are. Some checkpoints keep apart what the modules hold fused (one tensor per expert, say), or the
other way round; transformers knows each family's conversion, and its own operations do the work here, one recipe at a time.
"""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError

Combine = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Copy:
    """One stored tensor, decoded into a contiguous part of a parameter that begins `start` elements in."""

    source: StoredTensor
    target: str
    start: int = 0


@dataclass(frozen=True, slots=True)
class Conversion:
    """Stored tensors that become parameters by way of `combine`, which gets them decoded to `dtype`, in order.

    `dtype` None is the parameters' own.
    """

    sources: tuple[StoredTensor, ...]
    targets: tuple[str, ...]
    combine: Combine
    dtype: torch.dtype | None = None


Recipe = Copy | Conversion


@dataclass(slots=True)
class _Gathered:
    """What one converter collects: its sources in the order transformers would hand them over."""

    converter: WeightConverter
    target: str
    sources: list[tuple[str, StoredTensor]]

    def combine(self, tensors: Sequence[torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
        converter = deepcopy(self.converter)
        for (pattern, source), tensor in zip(self.sources, tensors, strict=True):
            converter.add_tensor(self.target, source.name, pattern, tensor)
        converted = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


def find_recipes(tensors: dict[str, StoredTensor], model: Any) -> list[Recipe]:
    """Return how `tensors` of a Hugging Face checkpoint fill the parameters of `model` (on the meta device).

    Stored tensors that the model has no use for are passed over. Raises CheckpointError for a shape that does not fit.
    """
    parameters: dict[str, torch.Tensor] = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    recipes: list[Recipe] = []
    gathered: dict[str, _Gathered] = {}
    for name in sorted(tensors, key=dot_natural_key):
        prefix = model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:
            target, pattern = rename_source_key(name, [], [], prefix, parameters)
        if target not in parameters:
            continue
        if pattern is None:
            recipes.append(Copy(tensors[name], target))
        else:
            group = gathered.setdefault(target, _Gathered(by_pattern[pattern], target, []))
            group.sources.append((pattern, tensors[name]))
    for group in gathered.values():
        recipes += _convert(group, model, parameters)
    for recipe in recipes:
        if isinstance(recipe, Copy) and recipe.start == 0:
            _check_shape(recipe, parameters[recipe.target])
    return recipes


def _convert(group: _Gathered, model: Any, parameters: dict[str, torch.Tensor]) -> list[Recipe]:
    try:
        blank = [torch.empty(source.shape, device="meta") for _, source in group.sources]
        shapes = {name: tensor.shape for name, tensor in group.combine(blank, model).items()}
    except Exception as error:
        names = ", ".join(source.name for _, source in group.sources[:3])
        raise CheckpointError(f"{names} … do not combine into {group.target}: {error}. Files may be missing.") from error
    for name, shape in shapes.items():
        if name in parameters and parameters[name].shape != shape:
            raise CheckpointError(
                f"{name} would have the shape {tuple(shape)} and the model needs {tuple(parameters[name].shape)}: "
                "config.json and the weights do not belong together, or a file is missing."
            )
    stacked = _stack(group, parameters)
    if stacked is not None:
        return list(stacked)
    sources = tuple(source for _, source in group.sources)
    targets = tuple(name for name in shapes if name in parameters)
    return [Conversion(sources, targets, lambda given: group.combine(given, model))]


def _stack(group: _Gathered, parameters: dict[str, torch.Tensor]) -> list[Copy] | None:
    """Return plain copies where the converter only stacks experts, each of them the rows of one or two matrices."""
    operations = group.converter.operations
    stacks = bool(operations) and isinstance(operations[0], MergeModulelist) and operations[0].dim == 0
    joins = len(operations) == 2 and isinstance(operations[1], Concatenate) and operations[1].dim == 1
    if not stacks or not (joins or len(operations) == 1):
        return None
    patterns = list(dict.fromkeys(group.converter.source_patterns))
    columns = {pattern: [source for found, source in group.sources if found == pattern] for pattern in patterns}
    if len({len(column) for column in columns.values()}) != 1:
        return None
    start = 0
    copies = []
    for expert in zip(*columns.values(), strict=True):
        for source in expert:
            copies.append(Copy(source, group.target, start))
            start += source.num_elements
    return copies if start == parameters[group.target].numel() else None


def _check_shape(copy: Copy, parameter: torch.Tensor) -> None:
    source = copy.source
    if source.shape != tuple(parameter.shape) and source.num_elements >= parameter.numel():
        raise CheckpointError(
            f"tensor {source.name} in {source.path.name} has the shape {source.shape} and the model needs "
            f"{tuple(parameter.shape)}: config.json and the weights do not belong together."
        )


def is_ignored(name: str, model: Any) -> bool:
    """Tell whether transformers does without the parameter `name` when a checkpoint lacks it."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)
