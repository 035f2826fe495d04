"""The user's own Hugging Face cache: where things lie in it, and what is complete.

The layout is the one huggingface_hub documents (`blobs`, `refs`, `snapshots`), shared with every other program.
"""

from pathlib import Path

from layermesh.shared.errors import ModelError
from layermesh.shared.library.disk import is_file
from layermesh.shared.library.hub_files import CONFIG, INDEX, SINGLE, parse_shards, pick_gguf, weight_names
from layermesh.shared.library.names import HubName


def cache_folder() -> Path:
    """Return the folder that HF_HUB_CACHE or HF_HOME name, or their default."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def repo_folder(repo_id: str) -> Path:
    """Return the folder of all that the cache holds of a repository."""
    return cache_folder() / "--".join(["models", *repo_id.split("/")])


def lock_path(repo_id: str, sha256: str) -> Path:
    """Return the lock that huggingface_hub takes too while it stores this blob."""
    return cache_folder() / ".locks" / repo_folder(repo_id).name / f"{sha256}.lock"


def blob_path(repo_id: str, sha256: str) -> Path:
    """Return where the complete file with this hash lies or would lie."""
    return repo_folder(repo_id) / "blobs" / sha256


def partial_path(repo_id: str, sha256: str) -> Path:
    """Return where an unfinished blob waits; huggingface_hub counts and clears files of this name."""
    return repo_folder(repo_id) / "blobs" / f"{sha256}.incomplete"


def snapshot_folder(repo_id: str, revision: str | None) -> Path:
    """Return the folder in which `revision` (branch, tag or commit) lies or would lie."""
    repo = repo_folder(repo_id)
    ref = repo / "refs" / (revision or "main")
    return repo / "snapshots" / (ref.read_text().strip() if is_file(ref) else revision or "main")


def cached_model(name: HubName, revision: str | None) -> Path | None:
    """Return the folder or GGUF file of `name`, the first where it has several, if the cache has all of it."""
    snapshot = snapshot_folder(name.repo_id, revision)
    if name.file is None:
        return snapshot if is_complete(snapshot) else None
    names = [str(file.relative_to(snapshot).as_posix()) for file in snapshot.rglob("*") if file.is_file()]
    try:
        return snapshot / pick_gguf(name.repo_id, names, name.file)[0]
    except ModelError:
        return None


def is_complete(snapshot: Path) -> bool:
    """Return whether the folder has a config and every file of its weights."""
    if not is_file(snapshot / CONFIG):
        return False
    index = snapshot / INDEX
    try:
        shards = parse_shards(index.read_bytes(), str(snapshot)) if index.is_file() else frozenset[str]()
    except ModelError:
        return False
    weights = weight_names([SINGLE] if (snapshot / SINGLE).is_file() else _top_files(snapshot), shards)
    return bool(weights) and all((snapshot / name).is_file() for name in weights)


def _top_files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.is_file()]
