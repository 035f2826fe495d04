"""What the head of a GGUF file says: architecture, metadata and where each tensor lies."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.decoding import block_size, can_decode
from layermesh.shared.checkpoints.gguf_fields import FieldReader
from layermesh.shared.checkpoints.json_files import unreadable
from layermesh.shared.checkpoints.layout import check_extents, check_name, check_shape, truncated
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

GGUF_MAGIC: Final = b"GGUF"
MAX_TENSORS: Final = 200_000
MAX_KEYS: Final = 20_000
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_DIMENSIONS: Final = 4
_COMMON_KINDS: Final = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, the IQ kinds, F16, BF16 and F32"


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """One file of a model and where its tensors begin, in bytes."""

    path: Path
    data_start: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The head of a GGUF file, or of the first one of several, without its vocabulary.

    `metadata` holds the values short enough to keep, `array_lengths` the number of elements of every list, and
    `spans` the bytes [start, end) of each key with its value. `tensors` are those of all `files`.
    """

    path: Path
    architecture: str
    metadata: dict[str, Any] = field(repr=False)
    array_lengths: dict[str, int] = field(repr=False)
    spans: dict[str, tuple[int, int]] = field(repr=False)
    tensors: dict[str, StoredTensor] = field(repr=False)
    files: tuple[GGUFFile, ...]

    @property
    def data_start(self) -> int:
        """Where the tensors of the first file begin, in bytes."""
        return self.files[0].data_start


def read_gguf_header(path: Path) -> GGUFHeader:
    """Return the head of the GGUF file at `path` alone, checked against the file's size; it may be a piece of a model.

    Only the first piece names an architecture. Raises CheckpointError for a file that is no GGUF file, truncated or
    damaged; UnsupportedModelError for versions, byte orders and quantisations that layermesh does not read.
    """
    try:
        with path.open("rb") as file:
            return _read(FieldReader(path, file, path.stat().st_size), path.stat().st_size)
    except OSError as error:
        raise unreadable(path, error) from error


def _read(reader: FieldReader, file_bytes: int) -> GGUFHeader:
    num_tensors, num_keys = _read_counts(reader)
    metadata: dict[str, Any] = {}
    array_lengths: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(num_keys):
        start, key = reader.position, reader.text()
        if key in spans:
            raise reader.broken(f"the key {ascii(key)[:80]} twice")
        metadata[key], length = reader.value()
        spans[key] = start, reader.position
        if length is not None:
            array_lengths[key] = length
    architecture = _architecture(reader, metadata)
    entries = [_read_tensor(reader) for _ in range(num_tensors)]
    data_start = _align(reader, metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    tensors = _place(reader.path, entries, data_start, file_bytes)
    files = (GGUFFile(reader.path, data_start),)
    return GGUFHeader(reader.path, architecture, metadata, array_lengths, spans, tensors, files)


def _read_counts(reader: FieldReader) -> tuple[int, int]:
    if reader.take(4) != GGUF_MAGIC:
        raise CheckpointError(f"{reader.path} is not a GGUF file: it does not begin with GGUF. Fetch it again.")
    version = reader.number("<I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        raise UnsupportedModelError(
            f"{reader.path} is {'a big-endian GGUF file' if swapped else f'GGUF version {version}'}; layermesh reads "
            "little-endian versions 2 and 3. Look for a newer conversion of this model."
        )
    num_tensors, num_keys = reader.number("<Q"), reader.number("<Q")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise reader.broken(f"a count of {num_tensors:,} tensors and {num_keys:,} keys")
    return num_tensors, num_keys


def _architecture(reader: FieldReader, metadata: dict[str, Any]) -> str:
    architecture = metadata.get("general.architecture")
    if architecture is None and metadata.get("split.count", 0) not in (0, 1) and metadata.get("split.no", 0) != 0:
        return ""
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(f"{reader.path} does not name its architecture. Fetch it again.")
    return architecture


def _read_tensor(reader: FieldReader) -> StoredTensor:
    name = reader.text(max_length=1024)
    check_name(reader.path, name)
    num_dimensions = reader.number("<I")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise reader.broken(f"a tensor of {num_dimensions} dimensions")
    sizes = [reader.number("<Q") for _ in range(num_dimensions)]
    shape = check_shape(reader.path, name, sizes[::-1])
    encoding = _encoding(reader.path, name, reader.number("<I"))
    block_elements, block_bytes = block_size(encoding)
    if shape[-1] % block_elements:
        raise reader.broken(f"rows of {shape[-1]} values for {name}, which {encoding} cannot hold")
    stored = StoredTensor(name, encoding, shape, reader.path, reader.number("<Q"), 0)
    return _resized(stored, stored.offset, stored.num_elements // block_elements * block_bytes)


def _resized(tensor: StoredTensor, offset: int, num_bytes: int) -> StoredTensor:
    return StoredTensor(tensor.name, tensor.encoding, tensor.shape, tensor.path, offset, num_bytes)


def _encoding(path: Path, name: str, number: int) -> str:
    from gguf import GGMLQuantizationType

    known: dict[int, str] = {int(kind): str(kind.name) for kind in GGMLQuantizationType}
    if number in known and can_decode(known[number]):
        return known[number]
    raise UnsupportedModelError(
        f"{path} stores tensor {name} as {known.get(number, f'kind number {number}')}, which layermesh cannot decode. "
        f"It reads {_COMMON_KINDS}: look for one of these."
    )


def _align(reader: FieldReader, alignment: Any) -> int:
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.broken(f"an alignment of {ascii(alignment)[:40]}")
    return -(-reader.position // alignment) * alignment


def _place(path: Path, entries: list[StoredTensor], data_start: int, file_bytes: int) -> dict[str, StoredTensor]:
    tensors = {tensor.name: _resized(tensor, data_start + tensor.offset, tensor.num_bytes) for tensor in entries}
    if len(tensors) != len(entries):
        raise CheckpointError(f"{path} has two tensors of the same name. Fetch it again.")
    if data_start > file_bytes and tensors:
        raise truncated(path, data_start, file_bytes)
    if tensors:
        check_extents(path, tensors.values(), data_start, file_bytes)
    return tensors
