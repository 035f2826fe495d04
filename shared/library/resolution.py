"""From what the user calls a model to where it lies."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layermesh.shared.errors import ModelNotFoundError, UnsupportedModelError, UsageError
from layermesh.shared.library.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry
from layermesh.shared.library.fetching import fetch
from layermesh.shared.library.hub import pull
from layermesh.shared.library.installed import list_models, list_packed
from layermesh.shared.library.names import HubName, looks_like_path
from layermesh.shared.library.progress import Progress


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on this machine: `path` is a Hugging Face folder or a GGUF file, perhaps the first of several.

    `notices` are for the user's eyes.
    """

    name: str
    path: Path
    origin: Literal["path", "catalog", "hub", "packed"]
    notices: tuple[str, ...] = ()


def resolve(
    name: str, *, revision: str | None = None, offline: bool = False, progress: Progress | None = None
) -> ResolvedModel:
    """Return where the model `name` lies, fetching it first if need be and not `offline`.

    `name` is a folder or .gguf file, a name of the catalog, `owner/name` on the hub, or `owner/name:file.gguf` for one
    GGUF model there (`owner/name:Q4_K_M` for the only one with that in its name), or that of a packed model (`NAME@int4`).
    `revision` is for the hub only.

    Raises ModelNotFoundError, UnsupportedModelError, CheckpointError, ModelError, DiskFullError, UsageError.
    """
    entry, hub = CATALOG.get(name), HubName.parse(name)
    path = os.path.expanduser(name)  # noqa: PTH111 - pathlib raises for ~nobody, and for names that are too long
    here = os.path.exists(path)  # noqa: PTH110
    if revision is not None and (here or entry is not None):
        raise UsageError(f"--revision is for models of the hub, and {name} is none. Leave it out.")
    if here:
        return ResolvedModel(name, _own(Path(path)), "path")
    packed = next((model for model in list_packed() if model.name == name), None)
    if packed is not None:
        return ResolvedModel(name, packed.path, "packed")
    if looks_like_path(name):
        raise _no_path(name)
    if entry is not None:
        return ResolvedModel(name, _from_catalog(entry, offline, progress), "catalog")
    if hub is not None:
        found, notices = pull(hub, revision, offline, progress)
        return ResolvedModel(name, found, "hub", notices)
    raise _unknown(name)


def _own(path: Path) -> Path:
    """Return the user's own `path` if it is something that can hold a model."""
    if path.is_dir() or path.suffix.lower() == ".gguf":
        return path
    if path.suffix.lower() == ".safetensors":
        raise UsageError(f"{path} is one file of a model. Give the folder it lies in, with its config.json.")
    raise UnsupportedModelError(
        f"{path} is neither a Hugging Face folder nor a .gguf file, and other files (pickles above all) are not read. "
        "Give a folder with config.json and .safetensors files, or a .gguf file."
    )


def _from_catalog(entry: CatalogEntry, offline: bool, progress: Progress | None) -> Path:
    if offline and not entry.is_installed():
        raise ModelNotFoundError(
            f"{entry.name} is not here yet and this is offline. Run `layermesh pull {entry.name}` with a connection first."
        )
    return fetch(entry, progress)


def _no_path(name: str) -> ModelNotFoundError:
    parts = name.split("/")
    colon = f"{'/'.join(parts[:2])}:{'/'.join(parts[2:])}"
    hint = f" A file on the hub is written {colon}." if len(parts) > 2 and HubName.parse(colon) else ""
    return ModelNotFoundError(f"there is no file or folder {name}. Check the path.{hint}")


def _unknown(name: str) -> ModelNotFoundError:
    known = [*CATALOG, *(model.name for model in list_models())]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close += [model for model in known if name and model.split("/")[-1].lower() == name.lower()]
    meant = f" Did you mean {close[0]}?" if close else ""
    return ModelNotFoundError(
        f"no model {name!r}.{meant} Give a Hugging Face folder, a .gguf file, a hub id (owner/name, or "
        f"owner/name:file.gguf) or {DEFAULT_MODEL}."
    )
