"""GGUF tensors that transformers, from 5.17, loads by the same conversions as any other checkpoint."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch

from layermesh.shared.checkpoints.gguf_groups import GGUFGroup
from layermesh.shared.checkpoints.rows import Combine
from layermesh.shared.checkpoints.tensors import Checkpoint


def converted_groups(checkpoint: Checkpoint, model: Any) -> list[GGUFGroup]:
    """Return the groups of `checkpoint` for the parameters of `model`, as its `WeightConverter`s would make them."""
    from layermesh.shared.transformers_api import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        get_gguf_conversion_mapping,
        rename_source_key,
    )

    mapping = get_gguf_conversion_mapping(str(checkpoint.gguf_architecture), model.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters = model.state_dict()
    found: dict[str, list[tuple[str, str | None]]] = {}  # the sources of a target, and what matched their names
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, parameters)
        if target in parameters:
            found.setdefault(target, []).append((name, pattern))
    return [_group(checkpoint, model, target, sources, by_pattern) for target, sources in found.items()]


def _group(
    checkpoint: Checkpoint, model: Any, target: str, sources: list[tuple[str, str | None]], by_pattern: dict[str, Any]
) -> GGUFGroup:
    pattern = sources[0][1]

    def rename(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {target: decoded[0]}

    return GGUFGroup(
        targets=(target,),
        sources=tuple(name for name, _ in sources),
        shapes=(tuple(model.get_parameter_or_buffer(target).shape),),
        source_shapes=tuple(checkpoint.tensors[name].shape for name, _ in sources),
        plain=pattern is None and len(sources) == 1,
        convert=rename if pattern is None else _combiner(by_pattern[pattern], target, sources, model.config),
    )


def _combiner(converter: Any, target: str, sources: list[tuple[str, str | None]], config: Any) -> Combine:
    def combine(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        working = deepcopy(converter)
        for (name, pattern), tensor in zip(sources, decoded, strict=True):
            working.add_tensor(target, name, pattern, tensor)
        made = working.convert(target, model=None, config=config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    return combine
