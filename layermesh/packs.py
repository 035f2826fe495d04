"""Packing a model, into the user's cache or a folder of their choice."""

from pathlib import Path

import torch

from layermesh.settings import OpeningOptions, packed_form
from layermesh.shared.block_hashes import PARTIAL_TABLE, BlockTableFile
from layermesh.shared.checkpoints import Checkpoint, open_checkpoint
from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.checkpoints.packing import Packing, is_packed
from layermesh.shared.errors import CheckpointError, UsageError
from layermesh.shared.library import Progress, ResolvedModel
from layermesh.shared.library.home import unpacked_folder
from layermesh.shared.library.packs import LOCK, is_complete, note_use, packed_folder
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.checking import blaming, check_config
from layermesh.shared.model.definition import define_model
from layermesh.shared.packing.packer import pack
from layermesh.shared.packing.request import PackRequest, Source
from layermesh.shared.packing.selection import sensitive_modules


def use_pack(resolved: ResolvedModel, checkpoint: Checkpoint, options: OpeningOptions) -> Checkpoint:
    """Return the packed form of `checkpoint` that the options ask for, packing it first if need be; itself if they don't.

    Raises UsageError where it is packed in another form already, and what `pack` raises.
    """
    form = packed_form(options)
    if form is None:
        return checkpoint
    request = PackRequest(*form, fused=options.get("fast_path", True))
    packing = _packing_of(checkpoint)
    if packing is None:
        folder = pack_cached(resolved.name, checkpoint, request, options.get("progress"))
        return open_checkpoint(folder, unpacked_folder())
    if (packing.bits, packing.group_size) != form:
        raise _packed_already(resolved.name, packing)
    return checkpoint


def pack_cached(name: str, checkpoint: Checkpoint, request: PackRequest, progress: Progress | None) -> Path:
    """Return the folder in the cache with the packed form of the model `name`, packing it unless it is there."""
    folder = packed_folder() / Source.of(checkpoint).key(request)
    if not is_complete(folder):
        _pack(name, checkpoint, request, folder, progress)
    note_use(folder)
    return folder


def pack_into(name: str, checkpoint: Checkpoint, request: PackRequest, folder: Path, progress: Progress | None) -> Path:
    """Pack the model `name` into the user's own `folder`, or go on where an interrupted run has stopped there.

    Raises UsageError for a folder that holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Say -o with the name of a new folder.")
    if (
        folder.is_dir()
        and any(file.name != LOCK for file in folder.iterdir())
        and not _is_begun(folder, Source.of(checkpoint).key(request))
    ):
        raise UsageError(f"{folder} exists and is not empty. Say -o with the name of a new folder.")
    _pack(name, checkpoint, request, folder, progress)
    return folder


def _pack(name: str, checkpoint: Checkpoint, request: PackRequest, folder: Path, progress: Progress | None) -> None:
    packing = _packing_of(checkpoint)
    if packing is not None:
        raise _packed_already(name, packing)
    check_config(checkpoint, read_object(checkpoint.config_dir / "config.json"))
    with blaming(checkpoint):
        definition = define_model(checkpoint.config_dir, torch.bfloat16)
        sensitive = sensitive_modules(definition)
        table = build_block_table(
            checkpoint, definition, fast_path=request.fused, treatment=lambda name: name.split(".")[-2] in sensitive
        )
        pack(name, checkpoint, definition, table, request, folder, progress)


def _packing_of(checkpoint: Checkpoint) -> Packing | None:
    config = read_object(checkpoint.config_dir / "config.json")
    return Packing.parse(config["quantization_config"], checkpoint.path) if is_packed(config) else None


def _packed_already(name: str, packing: Packing) -> UsageError:
    return UsageError(
        f"{name} is packed already, to int{packing.bits} in groups of {packing.group_size}. Run it as it is, or pack the "
        "original."
    )


def _is_begun(folder: Path, key: str) -> bool:
    try:
        return BlockTableFile.read(folder / PARTIAL_TABLE).key == key
    except CheckpointError:
        return False
