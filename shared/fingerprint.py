"""What tells one model from every other, found without reading it whole: its configuration, its tensors, samples of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast

from msgpack import packb

from layermesh.shared.checkpoints.json_files import MAX_JSON_BYTES, parse_object, unreadable
from layermesh.shared.checkpoints.layout import truncated
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError

CONFIG_FILES: Final = ("config.json", "generation_config.json")  # what a model's definition is built from
SAMPLE_DIGEST_BYTES: Final = 16
_SAMPLE_BYTES: Final = 64  # from the middle of a tensor, and as many from its end
_FORMAT: Final = "layermesh model 1"
_INCIDENTAL: Final = "transformers_version"  # of whoever saved the configuration

ReadAt = Callable[[int, int], bytes]  # bytes of a file: offset, how many


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor wherever it lies: `encoding`, `shape` and `num_bytes` as in StoredTensor, and a digest of a `sample` of it."""

    encoding: str
    shape: tuple[int, ...]
    num_bytes: int
    sample: bytes


def fingerprint(files: Mapping[str, bytes], tensors: Mapping[str, TensorEntry], architecture: str | None) -> str:
    """Return the sha256, in hex, that stands for a model of these configuration files and tensors.

    Finetunes differ in their samples; the release of transformers that wrote a configuration makes no difference.
    `architecture` is GGUF's, if it is a GGUF file. Raises CheckpointError for a configuration that is not JSON.
    """
    table = [[name, tensor.encoding, tensor.shape, tensor.num_bytes, tensor.sample] for name, tensor in sorted(tensors.items())]
    told = [_FORMAT, architecture, [[name, _settled(name, files[name])] for name in sorted(files)], table]
    return hashlib.sha256(cast("bytes", packb(told))).hexdigest()


def fingerprint_of(checkpoint: Checkpoint) -> str:
    """Return the fingerprint of a checkpoint here; raises CheckpointError where its files cannot be read."""
    return fingerprint(read_config_files(checkpoint), read_entries(checkpoint), checkpoint.gguf_architecture)


def read_config_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the files that a model's definition is built from, by name; raises CheckpointError."""
    return dict(_config_files(checkpoint.config_dir))


def read_entries(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """Return the tensors of a checkpoint, by name, with a sample of each; raises CheckpointError."""
    entries: dict[str, TensorEntry] = {}
    in_order = sorted(checkpoint.tensors.items(), key=lambda item: (str(item[1].path), item[1].offset))
    for path, inside in groupby(in_order, key=lambda item: item[1].path):
        with reading(path) as read:
            for name, tensor in inside:
                sample = sample_of(read, tensor.offset, tensor.num_bytes)
                entries[name] = TensorEntry(tensor.encoding, tensor.shape, tensor.num_bytes, sample)
    return entries


def sample_of(read: ReadAt, offset: int, num_bytes: int) -> bytes:
    """Return the digest of some bytes of a tensor that lies at `offset` of what `read` reads."""
    middle, end = max(num_bytes - _SAMPLE_BYTES, 0) // 2, max(num_bytes - _SAMPLE_BYTES, 0)
    size = min(num_bytes, _SAMPLE_BYTES)
    sampled = read(offset + middle, size) + read(offset + end, size)
    return hashlib.sha256(sampled).digest()[:SAMPLE_DIGEST_BYTES]


@contextmanager
def reading(path: Path) -> Iterator[ReadAt]:
    """Open a file and give what reads from it; raises CheckpointError where that fails or the file ends too early."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, error) from error

    def read(offset: int, num_bytes: int) -> bytes:
        try:
            got = os.pread(descriptor, num_bytes, offset)
        except OSError as error:
            raise unreadable(path, error) from error
        if len(got) < num_bytes:
            raise truncated(path, offset + num_bytes, offset + len(got))
        return got

    try:
        yield read
    finally:
        os.close(descriptor)


def _config_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in CONFIG_FILES:
        path = folder / name
        try:
            if name == CONFIG_FILES[0] or path.is_file():
                if path.stat().st_size > MAX_JSON_BYTES:
                    raise CheckpointError(f"{path} has too many bytes for its kind. Fetch it again.")
                yield name, path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error


def _settled(name: str, content: bytes) -> str:
    """Return what a configuration says, in one way of writing it."""
    values: dict[str, Any] = parse_object(Path(name), content)
    values.pop(_INCIDENTAL, None)
    try:
        return json.dumps(values, sort_keys=True)
    except RecursionError as error:
        raise CheckpointError(f"{name} is nested too deeply. Fetch it again.") from error
