"""From the tensors of a GGUF file to the parameters of the model, complete and of the right shapes."""

from math import prod
from typing import Any

from layermesh.shared.checkpoints.gguf_config import directly_loaded_architectures
from layermesh.shared.checkpoints.gguf_converters import converted_groups
from layermesh.shared.checkpoints.gguf_groups import GGUFGroup
from layermesh.shared.checkpoints.gguf_processors import processed_groups
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError

__all__ = ["GGUFGroup", "map_gguf"]


def map_gguf(checkpoint: Checkpoint, model: Any) -> list[GGUFGroup]:
    """Return which tensors of the GGUF `checkpoint` make which parameters of `model`, a causal LM on the meta device.

    Values equal those that transformers' `from_pretrained(gguf_file=...)` ends up with; tensors it ignores are left
    out, and a parameter tied to another has no group. Raises CheckpointError for missing tensors and wrong shapes,
    UnsupportedModelError for a model whose tensor names nobody knows.
    """
    if checkpoint.gguf_architecture in directly_loaded_architectures():
        groups = converted_groups(checkpoint, model)
    else:
        groups = processed_groups(checkpoint, model)
    _check_complete(checkpoint, model, groups)
    for group in groups:
        _check_shapes(checkpoint, group)
    return groups


def _check_complete(checkpoint: Checkpoint, model: Any, groups: list[GGUFGroup]) -> None:
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    made = {target for group in groups for target in group.targets}
    missing = [name for name, _ in model.named_parameters() if name not in made and name not in tied]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks what {len(missing)} parameters of the model are made of, {missing[0]} first. The "
            "file is incomplete, or of a layout that transformers does not read: look for another conversion of this "
            "model, or for its safetensors."
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
