"""A model from the Hugging Face hub, in the user's own cache."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermesh.shared.errors import ModelError, ModelNotFoundError, ResourceError
from layermesh.shared.library.disk import require_room, storing
from layermesh.shared.library.hub_blob import fetch_blob
from layermesh.shared.library.hub_cache import blob_path, cache_folder, cached_model, partial_path, snapshot_folder
from layermesh.shared.library.hub_errors import hub_errors
from layermesh.shared.library.hub_files import INDEX, HubFile, choose_files, parse_shards, pick_gguf
from layermesh.shared.library.names import HubName, check_file_name, check_no_escape
from layermesh.shared.library.progress import Advance, Progress, watched

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ANSWER_SECONDS: Final = 10.0
_LARGEST_OVER_HTTP: Final = 50 * 10**9  # larger ones exist for huggingface_hub's xet client only


def pull(name: HubName, revision: str | None, offline: bool, progress: Progress | None) -> tuple[Path, tuple[str, ...]]:
    """Return the folder or (first) GGUF file of `name` in the cache, and what the user should be told about it.

    Raises ModelError and its kinds, DiskFullError before a byte is fetched that would not fit.
    """
    cached = cached_model(name, revision)
    if offline or _offline() or (cached is not None and _COMMIT.fullmatch(revision or "")):
        return _cached_or_raise(name, cached), ()
    try:
        commit, files = _list(name, revision)
    except ModelError as error:
        if cached is None:
            raise
        return cached, (f"using the copy of {name} that is here: {error}",)
    try:
        with hub_errors(name, revision), _quiet():
            chosen = _choose(name, commit, files)
            _download(name, commit, chosen, progress)
            _note_revision(name, revision, commit, chosen[0])
    except (ResourceError, OSError) as error:  # of a cache that cannot be written
        if cached is None:
            raise
        return cached, (f"using the copy of {name} that is here: {error}",)
    snapshot = snapshot_folder(name.repo_id, commit)
    return snapshot if name.file is None else snapshot / chosen[0].name, ()


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _cached_or_raise(name: HubName, cached: Path | None) -> Path:
    if cached is None:
        raise ModelNotFoundError(
            f"{name} is not in the cache ({cache_folder()}), or not all of it, and this is offline. "
            f"Run `layermesh pull {name}` with a connection first."
        )
    return cached


def _list(name: HubName, revision: str | None) -> tuple[str, tuple[HubFile, ...]]:
    """Return the commit that `revision` is now, and all files in it."""
    from huggingface_hub import HfApi

    with hub_errors(name, revision):
        info = HfApi().model_info(name.repo_id, revision=revision, files_metadata=True, timeout=_ANSWER_SECONDS)
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ModelError(f"the hub gives no commit for {name}. Check HF_ENDPOINT.")
    return str(info.sha), tuple(_hub_file(file) for file in info.siblings or ())


def _hub_file(file: "RepoSibling") -> HubFile:
    sha256 = file.lfs.sha256 if file.lfs else ""
    return HubFile(file.rfilename, file.size or 0, sha256 if _SHA256.fullmatch(sha256) else None)


def _choose(name: HubName, commit: str, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    by_name = {file.name: file for file in files}
    if name.file is not None:
        check_no_escape(by_name, name.repo_id)
        return tuple(by_name[file] for file in pick_gguf(name.repo_id, by_name, name.file))
    if INDEX not in by_name:
        return choose_files(name.repo_id, files, frozenset())
    with storing(cache_folder(), by_name[INDEX].num_bytes):
        index = _get(name.repo_id, commit, INDEX).read_bytes()
    return choose_files(name.repo_id, files, parse_shards(index, name.repo_id))


def _download(name: HubName, commit: str, files: Sequence[HubFile], progress: Progress | None) -> None:
    """Have all `files` in the snapshot of `commit`, the first ones first; raises DiskFullError if they do not fit."""
    missing = [file for file in files if not (snapshot_folder(name.repo_id, commit) / file.name).exists()]
    if not missing:
        return
    needed = sum(file.num_bytes - _here_bytes(name.repo_id, file) for file in missing)
    require_room(cache_folder(), needed)
    what = f"fetching {name} ({len(missing)} file{'s' * (len(missing) > 1)})"
    with storing(cache_folder(), needed), watched(progress, what, sum(f.num_bytes for f in missing)) as advance:
        for file in missing:
            _download_file(name.repo_id, commit, file, advance)


def _download_file(repo_id: str, commit: str, file: HubFile, advance: Advance) -> None:
    check_file_name(file.name, repo_id)
    if file.sha256 is None or file.num_bytes > _LARGEST_OVER_HTTP:
        _get(repo_id, commit, file.name)
        advance(file.num_bytes)
        return
    fetch_blob(repo_id, commit, file, file.sha256, advance)
    if not _get(repo_id, commit, file.name).is_symlink():  # no links on this disk: huggingface_hub copied the blob
        blob_path(repo_id, file.sha256).unlink(missing_ok=True)


def _here_bytes(repo_id: str, file: HubFile) -> int:
    """Return how much of `file` an earlier attempt left."""
    if file.sha256 is None:
        return 0
    paths = blob_path(repo_id, file.sha256), partial_path(repo_id, file.sha256)
    return min(file.num_bytes, next((path.stat().st_size for path in paths if path.exists()), 0))


def _get(repo_id: str, revision: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, file, revision=revision))


def _note_revision(name: HubName, revision: str | None, commit: str, file: HubFile) -> None:
    """Have the cache remember which commit the branch is, now that all of it is here."""
    if revision != commit:
        _get(name.repo_id, revision or "main", file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars of its own."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, exported lazily
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
