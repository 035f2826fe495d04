"""One large file of the hub into the user's cache, going on where an earlier attempt stopped.

huggingface_hub goes on after a broken connection but, since 2.x, not after a broken process: its partial files carry
random names and are deleted. With shards of 5 GB that is half an hour of a home line, so large files come this way.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from layermesh.shared.errors import CheckpointError
from layermesh.shared.library.hub_cache import blob_path, lock_path, partial_path
from layermesh.shared.library.hub_errors import http_error, may_pass
from layermesh.shared.library.hub_files import HubFile
from layermesh.shared.library.progress import Advance

_CHUNK_BYTES: Final = 1 << 20
_PAUSES_SECONDS: Final = (0, 1, 2, 4)  # before each attempt after one that brought no byte


class Partial:
    """The beginning of a blob on the disk, with the hash of what is there."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.size = size
        self._clear()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            self._count(chunk)
        if self.num_bytes > size:
            self.restart()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def missing_bytes(self) -> int:
        return self.size - self.num_bytes

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Forget everything."""
        self._file.truncate(0)
        self._clear()

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    def _clear(self) -> None:
        self._digest = hashlib.sha256()
        self.num_bytes = 0


def fetch_blob(repo_id: str, commit: str, file: HubFile, sha256: str, advance: Advance) -> None:
    """Have the blob of `file` in the cache, complete and with the hash the hub lists for it.

    Raises CheckpointError for other bytes, and whatever huggingface_hub's HTTP client raises.
    """
    blob, path = blob_path(repo_id, sha256), partial_path(repo_id, sha256)
    with _only_me(repo_id, sha256):
        if blob.exists():
            advance(file.num_bytes)
            return
        blob.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as out:
            partial = Partial(out, file.num_bytes)
            advance(partial.num_bytes)
            _complete(partial, _url(repo_id, commit, file), advance)
            out.flush()
            os.fsync(out.fileno())
        if partial.sha256 != sha256:
            path.unlink()
            raise CheckpointError(
                f"{repo_id}: {file.name} arrived with sha256 {partial.sha256[:16]}…, the hub lists {sha256[:16]}…. "
                "It was deleted; pull again. If it stays so, something on the way changes it."
            )
        path.replace(blob)


@contextmanager
def _only_me(repo_id: str, sha256: str) -> Iterator[None]:
    from filelock import FileLock

    lock = lock_path(repo_id, sha256)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, mode=0o664):
        yield


def _url(repo_id: str, commit: str, file: HubFile) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo_id, file.name, revision=commit)


def _complete(partial: Partial, url: str, advance: Advance) -> None:
    """Ask for the missing rest until it is there; gives up after some attempts in a row that brought nothing."""
    failures = 0
    while partial.missing_bytes:
        before = partial.num_bytes
        try:
            _append_rest(partial, url, advance)
        except http_error() as error:
            if not may_pass(error) or failures == len(_PAUSES_SECONDS):
                raise
        failures = 0 if partial.num_bytes > before else failures + 1
        if partial.missing_bytes and failures:
            time.sleep(_PAUSES_SECONDS[failures - 1])


def _append_rest(partial: Partial, url: str, advance: Advance) -> None:
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, exported lazily

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if partial.num_bytes:
        headers["Range"] = f"bytes={partial.num_bytes}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if partial.num_bytes and response.status_code != 206:  # a server that knows no ranges sends all of it
            advance(-partial.num_bytes)
            partial.restart()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            if len(chunk) > partial.missing_bytes:
                raise CheckpointError(f"{url} is longer than the hub lists it. Pull again.")
            partial.append(chunk)
            advance(len(chunk))
