"""Reading checkpoints: what model it is, where its tensors lie, and their bytes made into values."""

from layermesh.shared.checkpoints.decoding import decode, row_bytes
from layermesh.shared.checkpoints.folders import open_folder
from layermesh.shared.checkpoints.gguf import open_gguf
from layermesh.shared.checkpoints.gguf_groups import GGUFGroup
from layermesh.shared.checkpoints.gguf_mapping import map_gguf
from layermesh.shared.checkpoints.opening import open_checkpoint
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES, Checkpoint, StoredTensor

__all__ = [
    "TORCH_DTYPES",
    "Checkpoint",
    "GGUFGroup",
    "StoredTensor",
    "decode",
    "map_gguf",
    "open_checkpoint",
    "open_folder",
    "open_gguf",
    "row_bytes",
]
