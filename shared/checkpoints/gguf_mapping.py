"""From the tensors of a GGUF file to the parameters of the model, complete and of the right shapes."""

import re
from math import prod
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_config import directly_loaded_architectures
from layermesh.shared.checkpoints.gguf_converters import converted_groups
from layermesh.shared.checkpoints.gguf_gemma4 import UNUSED_WHERE_SHARED
from layermesh.shared.checkpoints.gguf_groups import GGUFGroup
from layermesh.shared.checkpoints.gguf_processors import processed_groups
from layermesh.shared.checkpoints.gguf_rope import APPLIED_TENSORS
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.transformers_api import tied_weights

__all__ = ["GGUFGroup", "map_gguf"]

_OTHER_SENSES: Final = ("v.", "a.", "mm.")  # sub-models that text never reaches
_LAYER: Final = re.compile(r"blk\.(\d+)\.")
_WITH_DRAFT: Final = frozenset({"qwen35", "qwen35moe"})  # layers behind the last one guess tokens and change none


def map_gguf(checkpoint: Checkpoint, model: Any) -> list[GGUFGroup]:
    """Return which tensors of the GGUF `checkpoint` make which parameters of `model`, a causal LM on the meta device.

    Values equal those that transformers' `from_pretrained(gguf_file=...)` ends up with; a parameter tied to another has no
    group. Raises CheckpointError for missing tensors and wrong shapes, UnsupportedModelError for a model whose tensor
    names nobody knows and for a tensor that the model has no use for.
    """
    if checkpoint.gguf_architecture in directly_loaded_architectures():
        groups = converted_groups(checkpoint, model)
    else:
        groups = processed_groups(checkpoint, model)
    _check_complete(checkpoint, model, groups)
    _check_all_used(checkpoint, model, groups)
    for group in groups:
        _check_shapes(checkpoint, group)
    return groups


def _check_complete(checkpoint: Checkpoint, model: Any, groups: list[GGUFGroup]) -> None:
    tied = tied_weights(model)
    made = {target for group in groups for target in group.targets}
    missing = [name for name, _ in model.named_parameters() if name not in made and name not in tied]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks what {len(missing)} parameters of the model are made of, {missing[0]} first. The "
            "file is incomplete, or of a layout that transformers does not read: look for another conversion of this "
            "model, or for its safetensors."
        )


def _check_all_used(checkpoint: Checkpoint, model: Any, groups: list[GGUFGroup]) -> None:
    """Raise UnsupportedModelError for a tensor that makes no parameter and of which the configuration knows nothing."""
    used = {source for group in groups for source in group.sources} | APPLIED_TENSORS
    config = model.config.get_text_config(decoder=True)
    for name in checkpoint.tensors:
        if name not in used and not name.startswith(_OTHER_SENSES) and not _is_of_no_use(checkpoint, config, name):
            raise UnsupportedModelError(
                f"cannot run {checkpoint.path}: its tensor {name} belongs to no parameter of {type(model).__name__}. Use this "
                "model's safetensors, or another conversion of it."
            )


def _is_of_no_use(checkpoint: Checkpoint, config: Any, name: str) -> bool:
    """Return whether the tensor `name` is one that no answer depends on: of a draft, or of keys that are another layer's."""
    layer = _LAYER.match(name)
    if layer is None:
        return False
    num_layers = int(config.num_hidden_layers)
    if checkpoint.gguf_architecture in _WITH_DRAFT:
        return int(layer[1]) >= num_layers
    shared = int(getattr(config, "num_kv_shared_layers", 0) or 0)
    return (
        checkpoint.gguf_architecture == "gemma4"
        and num_layers - shared <= int(layer[1]) < num_layers
        and name[layer.end() :].startswith(UNUSED_WHERE_SHARED)
    )


def _check_shapes(checkpoint: Checkpoint, group: GGUFGroup) -> None:
    stored = [checkpoint.tensors[name].shape for name in group.sources]
    fits = sum(map(prod, stored)) == sum(map(prod, group.shapes))
    if not fits or (group.plain and stored[0] != group.shapes[0]):
        raise CheckpointError(
            f"{checkpoint.path} has {group.sources[0]} of shape {list(stored[0])}, where the model's "
            f"{group.targets[0]} has {list(group.shapes[0])}. The file does not fit its own metadata: fetch it "
            "again, or look for another conversion."
        )
