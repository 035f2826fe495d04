"""`layermesh quantize`: pack a model once, to run it from its packed form."""

from pathlib import Path

from layermesh.packs import pack_cached, pack_into
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.library import resolve
from layermesh.shared.library.home import unpacked_folder
from layermesh.shared.packing.request import PackRequest
from layermesh.shared.units import format_bytes
from layermesh.terminal import DownloadLine, note


def print_packed(model: str, request: PackRequest, output: Path | None, *, revision: str | None, offline: bool) -> None:
    """Pack `model`, into the cache unless `output` names a folder, and print where it lies."""
    resolved = resolve(model, revision=revision, offline=offline, progress=DownloadLine())
    for notice in resolved.notices:
        note(f"note: {notice}")
    checkpoint = open_checkpoint(resolved.path, unpacked_folder())
    if output is None:
        folder = pack_cached(resolved.name, checkpoint, request, DownloadLine())
    else:
        folder = pack_into(resolved.name, checkpoint, request, output.expanduser(), DownloadLine())
    before = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
    after = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    note(f"[{format_bytes(before)} packed to {format_bytes(after)}, {request.label}]")
    print(folder)  # noqa: T201
