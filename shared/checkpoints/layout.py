"""What every table of tensors has to satisfy before anything is read by it, whatever wrote the file."""

from collections.abc import Iterable
from pathlib import Path

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError

MAX_NAME_LENGTH = 300
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 2**62


def check_name(path: Path, name: str) -> None:
    """Refuse a tensor name that could act as a path or garble a terminal; raises CheckpointError."""
    bad = not name or len(name) > MAX_NAME_LENGTH or ".." in name or "/" in name or "\\" in name
    if bad or not name.isprintable():
        shown = ascii(name if len(name) <= 80 else name[:80] + "…")
        raise CheckpointError(
            f"{path} holds a tensor named {shown}, which is no tensor name (too long, empty, or with '..', slashes or "
            "control characters). The file is broken or made to do harm: get the model from another source."
        )


def check_shape(path: Path, name: str, shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple of non-negative sizes; raises CheckpointError for anything else."""
    if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(type(size) is int for size in shape):
        num_elements = 1
        for size in shape:
            num_elements = num_elements * size if 0 <= size <= MAX_ELEMENTS and num_elements <= MAX_ELEMENTS else -1
        if 0 <= num_elements <= MAX_ELEMENTS:
            return tuple(shape)
    raise CheckpointError(f"{path} gives tensor {name} an impossible shape: {ascii(shape)[:80]}. Fetch the file again.")


def check_extents(path: Path, tensors: Iterable[StoredTensor], data_start: int, file_bytes: int) -> None:
    """Refuse tensors that lie before `data_start`, beyond the end of the file, or over each other.

    Offsets and sizes in bytes from the start of the file. Raises CheckpointError.
    """
    previous: StoredTensor | None = None
    expected = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset < data_start:
            raise CheckpointError(f"{path} places tensor {tensor.name} inside its own header. Fetch the file again.")
        if previous is not None and tensor.offset < previous.offset + previous.num_bytes:
            raise CheckpointError(
                f"{path} places tensors {previous.name} and {tensor.name} over each other. The file is broken: fetch it again."
            )
        previous = tensor
        expected = tensor.offset + tensor.num_bytes
    if expected > file_bytes:
        raise truncated(path, expected, file_bytes)


def truncated(path: Path, expected_bytes: int, actual_bytes: int) -> CheckpointError:
    """Return the error for a file that ends before its own header says it does."""
    return CheckpointError(
        f"{path} is truncated: its header promises {expected_bytes:,} bytes and it has {actual_bytes:,}. The download "
        "was probably interrupted: fetch the file again."
    )
