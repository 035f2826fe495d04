"""The models that are on this machine because layermesh, or a program that shares its cache, fetched them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from layermesh.shared.errors import ModelNotFoundError, UsageError
from layermesh.shared.gguf_pieces import piece_names
from layermesh.shared.library.catalog import CATALOG, CatalogEntry
from layermesh.shared.library.disk import is_folder
from layermesh.shared.library.fetching import locked
from layermesh.shared.library.home import unpacked_folder
from layermesh.shared.library.hub_cache import cache_folder, is_complete, repo_folder
from layermesh.shared.library.hub_files import find_gguf
from layermesh.shared.library.names import HubName
from layermesh.shared.library.packs import cached_packs, remove_packs
from layermesh.shared.unpacked import sweep_unpacked

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, CachedRevisionInfo


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A complete model; `used` is when it was last read or written, in seconds since the epoch."""

    name: str
    origin: Literal["catalog", "hub", "packed"]
    path: Path
    num_bytes: int
    used: float


def list_models() -> list[InstalledModel]:
    """Return the models of the catalog, of the Hugging Face cache and packed ones that are here, the last used first."""
    return sorted((*_from_catalog(), *_from_hub(), *list_packed()), key=lambda model: -model.used)


def remove(name: str) -> int:
    """Delete the downloaded or packed model `name`, half of one too, and what was unpacked from it; returns the bytes freed.

    Raises ModelNotFoundError when it is not here, UsageError for a path: files of the user are the user's.
    """
    return _remove(name) + sweep_unpacked(unpacked_folder())


def _remove(name: str) -> int:
    freed = remove_packs(name)
    if freed is not None:
        return freed
    if entry := CATALOG.get(name):
        return _remove_entry(entry)
    if hub := HubName.parse(name):
        return _remove_hub(hub)
    if Path(name).expanduser().exists():
        raise UsageError(f"{name} is a path, and layermesh deletes only what it downloaded. Delete it yourself.")
    raise _not_here(name)


def _from_catalog() -> Iterator[InstalledModel]:
    for entry in CATALOG.values():
        if entry.is_installed():
            status = entry.path.stat()
            used = max(status.st_atime, status.st_mtime)
            yield InstalledModel(entry.name, "catalog", entry.path, status.st_size, used)


def list_packed() -> list[InstalledModel]:
    """Return the complete packed models in the cache."""
    return [
        InstalledModel(pack.name, "packed", pack.path, pack.num_bytes, pack.used) for pack in cached_packs() if pack.complete
    ]


def _from_hub() -> Iterator[InstalledModel]:
    for repo in _repos():
        newest_first = sorted(repo.revisions, key=lambda found: ("main" not in found.refs, -found.last_modified))
        whole = next((found for found in newest_first if is_complete(found.snapshot_path)), None)
        if whole is not None:
            files = [file for file in whole.files if not _is_gguf(file)]
            yield _installed(repo.repo_id, whole.snapshot_path, files)
        for name, files in _gguf_models(newest_first).items():
            yield _installed(f"{repo.repo_id}:{name}", files[0].file_path, files)


def _installed(name: str, path: Path, files: "list[CachedFileInfo]") -> InstalledModel:
    num_bytes = sum({file.blob_path: file.size_on_disk for file in files}.values())
    used = max(max(file.blob_last_accessed, file.blob_last_modified) for file in files)
    return InstalledModel(name, "hub", path, num_bytes, used)


def _is_gguf(file: "CachedFileInfo") -> bool:
    return file.file_name.lower().endswith(".gguf")


def _gguf_models(revisions: "list[CachedRevisionInfo]") -> "dict[str, list[CachedFileInfo]]":
    """Return the files of each complete GGUF model by the path of its first one in the repository.

    Each is from the first revision that has all of it.
    """
    found: dict[str, list[CachedFileInfo]] = {}
    for revision in revisions:
        there = {
            file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files if _is_gguf(file)
        }
        for name in sorted(there):
            pieces = piece_names(name)
            if there.keys() >= set(pieces):
                found.setdefault(pieces[0], [there[piece] for piece in pieces])
    return found


def _repos() -> "list[CachedRepoInfo]":
    from huggingface_hub import scan_cache_dir

    cache = cache_folder()
    if not is_folder(cache):
        return []
    return [repo for repo in scan_cache_dir(cache).repos if repo.repo_type == "model"]


def _remove_entry(entry: CatalogEntry) -> int:
    if not is_folder(entry.folder):
        raise _not_here(entry.name)
    with locked(entry.name):
        freed = sum(file.stat().st_size for file in entry.folder.rglob("*") if file.is_file())
        shutil.rmtree(entry.folder)
    return freed


def _remove_hub(name: HubName) -> int:
    repo = next((repo for repo in _repos() if repo.repo_id == name.repo_id), None)
    if repo is None:
        return _remove_fragments(name)
    if name.file is not None:
        return _remove_file(name, repo)
    return _remove_all(repo)


def _remove_all(repo: "CachedRepoInfo") -> int:
    from huggingface_hub import scan_cache_dir

    unfinished = sum(file.stat().st_size for file in repo.repo_path.glob("blobs/*.incomplete"))
    strategy = scan_cache_dir(cache_folder()).delete_revisions(*(found.commit_hash for found in repo.revisions))
    strategy.execute()
    return strategy.expected_freed_size + unfinished


def _remove_file(name: HubName, repo: "CachedRepoInfo") -> int:
    """Delete one GGUF model from all revisions, and the repository if nothing else is in it."""
    files = {
        file.file_path: (file.file_path.relative_to(revision.snapshot_path).as_posix(), file)
        for revision in repo.revisions
        for file in revision.files
    }
    wanted = find_gguf(name.repo_id, {relative for relative, _ in files.values()}, str(name.file))
    ours = [file for relative, file in files.values() if relative in wanted]
    if len(ours) == len(files):
        return _remove_all(repo)
    for path in {path for file in ours for path in (file.file_path, file.blob_path)}:
        path.unlink(missing_ok=True)
    return sum({file.blob_path: file.size_on_disk for file in ours}.values())


def _remove_fragments(name: HubName) -> int:
    """Delete what an interrupted pull left of a repository that the cache does not count as one."""
    folder = repo_folder(name.repo_id)
    if not is_folder(folder):
        raise _not_here(str(name))
    freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    shutil.rmtree(folder)
    return freed


def _not_here(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{name} is not here, so there is nothing to remove. `layermesh ls` lists what is.")
