"""Packing a model: one file after the other, each whole or not at all, the index last."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from layermesh.shared.block_hashes import PARTIAL_TABLE, TABLE, BlockTableFile, file_hash
from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.checkpoints.packing import Packing
from layermesh.shared.checkpoints.tensors import Checkpoint
from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.disk import require_room, storing
from layermesh.shared.library.packs import INDEX, LOCK
from layermesh.shared.library.progress import Advance, Progress, watched
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.packing.block_file import TEMPORARY_SUFFIX, flush_folder, write_block_file
from layermesh.shared.packing.contents import PackedFile, pack_contents
from layermesh.shared.packing.request import PackRequest, Source
from layermesh.shared.packing.selection import Selection, packed_parameters, select
from layermesh.shared.quant.tiles import packing_tile

_SMALL_FILES_BYTES: Final = 32 << 20  # configuration, tokenizer, index
_COMPANIONS: Final = (
    "*.model", "tokenizer*.json", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "generation_config.json", "*.jinja", "additional_chat_templates/*.jinja", "*.tiktoken", "tekken.json", "spiece.model",
)  # fmt: skip


def pack(
    name: str,
    checkpoint: Checkpoint,
    definition: ModelDefinition,
    table: BlockTable,
    request: PackRequest,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Pack the model `name` into `folder`, or what an interrupted run has left to do there.

    `definition` and `table` say what its layers are made of and where that lies; they may be put together differently from the
    checkpoint (`request.fused`). The checkpoint stays as it is. Raises UnsupportedModelError for a model that cannot be packed,
    CheckpointError for one that is damaged or changes meanwhile, DiskFullError, ResourceError.
    """
    source = Source.of(checkpoint)
    selection = select(definition, table, request)
    files = pack_contents(definition, table, selection)
    num_bytes = sum(file.num_bytes for file in files)
    with storing(folder, num_bytes + _SMALL_FILES_BYTES):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, progress), watched(progress, f"packing {name} to {request.label}", num_bytes) as advance:
            journal = _Journal(folder, source.key(request), f"{name}@{request.label}")
            left = [file for file in files if not journal.has(file, advance)]
            require_room(folder, sum(file.num_bytes for file in left) + _SMALL_FILES_BYTES)
            for file in left:
                written = write_block_file(folder / file.name, file.tensors, advance)
                source.check_unchanged()
                journal.add(file.name, written)
            _finish(folder, checkpoint, files, _packing(definition, request, selection, files), journal)


def _packing(definition: ModelDefinition, request: PackRequest, selection: Selection, files: Sequence[PackedFile]) -> Packing:
    modules = dict(packed_parameters(selection))
    if selection.head_form is not None:
        modules[str(definition.head)] = selection.head_form
    embeddings = {name: table for file in files for name, table in file.embeddings.items()}
    return Packing(request.bits, request.group_size, packing_tile(), modules, embeddings, selection.head_bounds, request.fused)


def _finish(folder: Path, checkpoint: Checkpoint, files: Sequence[PackedFile], packing: Packing, journal: "_Journal") -> None:
    config = read_object(checkpoint.config_dir / "config.json") | {"quantization_config": packing.to_config()}
    _write(folder / "config.json", _json(config))
    for name, companion in _companions(checkpoint):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(companion, folder / name)
    journal.close()
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    total = sum(tensor.num_bytes for file in files for tensor in file.tensors)
    _write(folder / INDEX, _json({"metadata": {"total_size": total}, "weight_map": weight_map}))


def _companions(checkpoint: Checkpoint) -> Iterator[tuple[Path, Path]]:
    """Yield the small files that belong to a model, and their names in it: tokenizer, chat templates, generation settings."""
    folders = {checkpoint.config_dir, checkpoint.tokenizer_dir or checkpoint.config_dir}
    for folder in folders:
        for pattern in _COMPANIONS:
            yield from ((file.relative_to(folder), file) for file in folder.glob(pattern) if file.is_file())


class _Journal:
    """The files of a pack that are complete, kept beside them while it is being made."""

    def __init__(self, folder: Path, key: str, name: str) -> None:
        self._folder = folder
        self._files: dict[str, tuple[int, bytes]] = {}
        self._key, self._name = key, name
        for left_over in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            left_over.unlink()
        with contextlib.suppress(CheckpointError):  # none yet, or none that can be read
            earlier = BlockTableFile.read(folder / PARTIAL_TABLE)
            if earlier.key == key:
                self._files = dict(earlier.files)
        self._note()

    def has(self, file: PackedFile, advance: Advance) -> bool:
        """Whether `file` was written before and still is what was written."""
        path = self._folder / file.name
        noted = self._files.get(file.name)
        if noted is None or not path.is_file() or (path.stat().st_size, file_hash(path)) != noted:
            return False
        advance(file.num_bytes)
        return True

    def add(self, name: str, written: tuple[int, bytes]) -> None:
        self._files[name] = written
        self._note()

    def close(self) -> None:
        """Make it the table of the finished pack."""
        _write(self._folder / TABLE, BlockTableFile(self._key, self._name, self._files).to_bytes())
        (self._folder / PARTIAL_TABLE).unlink(missing_ok=True)

    def _note(self) -> None:
        _write(self._folder / PARTIAL_TABLE, BlockTableFile(self._key, self._name, self._files).to_bytes())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


@contextlib.contextmanager
def _alone(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Be the only process that packs into `folder`."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with watched(progress, f"waiting for another process that packs into {folder}", None):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
