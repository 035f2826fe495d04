"""GGUF files: opened by their own head, and by a small folder of what transformers wants to know, made once."""

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUF_MAGIC, GGUFHeader
from layermesh.shared.checkpoints.gguf_split import find_pieces, read_gguf
from layermesh.shared.checkpoints.json_files import read_object, unreadable
from layermesh.shared.checkpoints.layout import check_extents, check_name, check_shape
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import CheckpointError, LayermeshError, UnsupportedModelError
from layermesh.shared.library.disk import is_file, is_unwritable, storing
from layermesh.shared.unpacked import UNPACKING, note_sources, note_use, sweep_unpacked

__all__ = ["GGUF_MAGIC", "open_gguf"]

_TABLE: Final = "tensors.json"
_FORMAT: Final = 4
_CHILD: Final = "layermesh.shared.checkpoints.unpack_gguf"
_CHILD_SECONDS: Final = 300
_KEPT_OUTPUT: Final = 4000
_ROOM_BYTES: Final = 64 << 20  # that a head may take

_for_now: Final[dict[str, Path]] = {}


def open_gguf(path: Path, cache: Path) -> Checkpoint:
    """Return what the GGUF file at `path` holds, or all pieces of a model where it is one of them.

    Tensors keep GGUF's names and encodings. The first time, configuration, tokenizer and tensor table are unpacked into
    a folder under `cache`, a few seconds' work; later only that table is read. Raises CheckpointError for a damaged
    file, UnsupportedModelError for an architecture, quantisation or version that is not read. Where the cache cannot be
    written it is unpacked into a temporary folder, which goes with this process; raises DiskFullError or ResourceError
    where there is no such folder either.
    """
    try:
        folder = cache / _key(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not is_file(folder / _TABLE):
        folder = _unpacked(path, folder)
    note_use(folder)
    return _load(path, folder)


def _unpacked(path: Path, folder: Path) -> Path:
    """Unpack the head of `path` and return where: into `folder`, or into a temporary folder where that cannot be written."""
    try:
        _unpack(path, folder)
    except OSError as error:
        with storing(folder.parent, _ROOM_BYTES):
            if not is_unwritable(error):
                raise unreadable(folder.parent, error) from error
            try:
                return _unpacked_for_now(path)
            except OSError:
                raise error from None
    sweep_unpacked(folder.parent)
    return folder


def _unpacked_for_now(path: Path) -> Path:
    """Unpack the head of `path` into a temporary folder, made once for each file in a process; raises OSError."""
    key = _key(path)
    if key not in _for_now:
        work = Path(tempfile.mkdtemp(prefix="layermesh-unpacked-"))
        atexit.register(shutil.rmtree, work, ignore_errors=True)
        _unpack(path, work / key)
        _for_now[key] = work / key
    return _for_now[key]


def _key(path: Path) -> str:
    files = [(file.resolve(), file.stat()) for file in find_pieces(path)]
    looks = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in files]
    parts = (*looks, _FORMAT, *map(_version, ("layermesh", "transformers", "gguf")))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the head of `path` into `folder`; raises OSError where it cannot be written."""
    header = read_gguf(path)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=UNPACKING, dir=folder.parent))
        _run_child(path, temporary)
        (temporary / _TABLE).write_text(json.dumps(_table(header)), encoding="utf-8")
        note_sources(temporary, [file.path for file in header.files])
        _publish(temporary, folder)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.replace(folder)
    except OSError:
        if not (folder / _TABLE).is_file():  # else another process was quicker
            raise


def _run_child(path: Path, folder: Path) -> None:
    command = [sys.executable, "-P", "-m", _CHILD, str(path.absolute()), str(folder.absolute())]
    search = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": search, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{path}: unpacking it took more than {_CHILD_SECONDS} s. Fetch it again, or use another machine."
        ) from error
    if child.returncode != 0:
        _raise_failure(path, child)


def _raise_failure(path: Path, child: "subprocess.CompletedProcess[bytes]") -> None:
    complaint = child.stderr.decode("utf-8", "replace")[-_KEPT_OUTPUT:]
    try:
        report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
        if "errno" in report:
            raise OSError(int(report["errno"]), str(report["message"])) from ChildProcessError(complaint)
        kind: type[LayermeshError] = (
            UnsupportedModelError if report["error"] == UnsupportedModelError.__name__ else CheckpointError
        )
        raise kind(str(report["message"])) from ChildProcessError(complaint)
    except (ValueError, LookupError, TypeError):
        last = complaint.strip().splitlines()[-1:] or [f"status {child.returncode}"]
        raise CheckpointError(
            f"{path}: unpacking its metadata failed ({last[0][:300]}). Fetch the file again, or look for another "
            "conversion of this model."
        ) from ChildProcessError(complaint)


def _table(header: GGUFHeader) -> dict[str, Any]:
    numbers = {file.path: number for number, file in enumerate(header.files)}
    return {
        "architecture": header.architecture,
        "data_starts": [file.data_start for file in header.files],
        "tensors": {
            tensor.name: [numbers[tensor.path], tensor.encoding, list(tensor.shape), tensor.offset, tensor.num_bytes]
            for tensor in header.tensors.values()
        },
    }


def _load(path: Path, folder: Path) -> Checkpoint:
    table = read_object(folder / _TABLE)
    try:
        starts = [int(start) for start in table["data_starts"]]
        files = find_pieces(path) if len(starts) > 1 else [path]
        tensors = {name: _stored_tensor(files, name, entry) for name, entry in table["tensors"].items()}
        for file, start in zip(files, starts, strict=True):
            if inside := [tensor for tensor in tensors.values() if tensor.path == file]:
                check_extents(file, inside, start, file.stat().st_size)
        architecture = str(table["architecture"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged. Remove it: it will be made again.") from error
    tokenizer, reason = folder / "tokenizer", folder / "tokenizer_error.txt"
    return Checkpoint(
        path=files[0],
        config_dir=folder,
        tokenizer_dir=tokenizer if (tokenizer / "tokenizer_config.json").is_file() else None,
        tensors=tensors,
        gguf_architecture=architecture,
        tokenizer_error=reason.read_text(encoding="utf-8") if reason.is_file() else None,
    )


def _stored_tensor(files: list[Path], name: str, entry: list[Any]) -> StoredTensor:
    number, encoding, shape, offset, num_bytes = entry
    path = files[number]
    check_name(path, name)
    return StoredTensor(name, str(encoding), check_shape(path, name, shape), path, int(offset), int(num_bytes))
