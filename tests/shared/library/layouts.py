"""Models put on the disk as a pull would leave them."""

import os
from pathlib import Path

from layermesh.shared.library import DEFAULT_MODEL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_repo(cache: Path, repo_id: str, files: dict[str, bytes]) -> Path:
    """Lay out a repository as huggingface_hub does; returns its snapshot."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        blob = repo / "blobs" / f"blob-of-{name}"
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def put_catalog_model(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "models" / DEFAULT_MODEL / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF!")
    return path
