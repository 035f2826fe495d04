"""Reading checkpoints: what model it is, where its tensors lie, and their bytes made into values."""

from layermesh.shared.checkpoints.decoding import decode, row_bytes
from layermesh.shared.checkpoints.folders import open_folder
from layermesh.shared.checkpoints.tensors import TORCH_DTYPES, Checkpoint, StoredTensor

__all__ = ["TORCH_DTYPES", "Checkpoint", "StoredTensor", "decode", "open_folder", "row_bytes"]
