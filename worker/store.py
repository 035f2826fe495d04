"""What a worker keeps of models whose files it has not, a folder each."""

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layermesh.shared.block_hashes import TABLE, BlockTableFile
from layermesh.shared.errors import CheckpointError, DiskFullError
from layermesh.shared.library.disk import free_bytes, storing
from layermesh.shared.library.packs import note_use
from layermesh.shared.manifest import Manifest
from layermesh.worker.in_use import unused, used
from layermesh.worker.stored_model import MANIFEST, StoredModel, part_name

__all__ = ["Store", "StoredModel", "StoredSummary", "choose_evictions"]

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_LOCKS: Final = "locks"


@dataclass(frozen=True, slots=True)
class StoredSummary:
    """What is here of a model: its parts that are complete, the bytes it takes, when it was `last_used` (Unix seconds)."""

    fingerprint: str
    name: str
    num_bytes: int
    parts: tuple[str, ...]
    last_used: float


class Store:
    """The models in `folder`, which may take `limit_bytes` in all; None for as much as the disk has.

    Any number of processes may use one folder.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def has(self, fingerprint: str) -> bool:
        """Whether the model is described here."""
        return self.get(fingerprint) is not None

    def get(self, fingerprint: str) -> StoredModel | None:
        """Return the model if it is described here; one whose description is damaged is not."""
        folder = self._folder(fingerprint)
        try:
            manifest = Manifest.parse((folder / MANIFEST).read_bytes())
            BlockTableFile.read(folder / TABLE)
        except (OSError, CheckpointError):
            return None
        return StoredModel(folder, manifest, self._use_lock(fingerprint)) if manifest.fingerprint == fingerprint else None

    def add(self, manifest: Manifest) -> StoredModel:
        """Return the model that `manifest` describes, with what there is of it; parts that it divides otherwise are dropped.

        Raises DiskFullError, ResourceError.
        """
        there = self.get(manifest.fingerprint)
        if there is not None and there.manifest.parts == manifest.parts:
            return there
        model = StoredModel(self._folder(manifest.fingerprint), manifest, self._use_lock(manifest.fingerprint))
        with self.in_use(manifest.fingerprint), storing(self.folder, len(manifest.to_bytes())):
            model.write_description()
        return model

    @contextmanager
    def in_use(self, fingerprint: str) -> Iterator[None]:
        """Keep what is here of the model, or comes meanwhile, from making room for another."""
        folder = self._folder(fingerprint)
        with storing(self.folder, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = used(self._use_lock(fingerprint))
        with lock:
            note_use(folder)
            yield
            note_use(folder)

    def models(self) -> list[StoredSummary]:
        """Return what is here, the model that was used last at the end."""
        found = [_summary(folder) for folder in self._folders()]
        return sorted((summary for summary in found if summary is not None), key=lambda summary: summary.last_used)

    def make_room(self, num_bytes: int, keep: Collection[str] = ()) -> None:
        """Make sure that `num_bytes` more fit, at the cost of the models that were used longest ago.

        Those in use stay, and those whose fingerprints are in `keep`. Raises DiskFullError where that is not enough, having
        removed nothing.
        """
        models = self.models()
        room = free_bytes(self.folder)
        if self.limit_bytes is not None:
            room = min(room, self.limit_bytes - sum(model.num_bytes for model in models))
        idle = [model for model in models if model.fingerprint not in keep and self._is_idle(model.fingerprint)]
        could_have = room + sum(model.num_bytes for model in idle)
        if could_have < num_bytes:
            raise DiskFullError(self.folder, num_bytes, max(could_have, 0))
        for model in choose_evictions(idle, num_bytes - room):
            if not self.remove(model.fingerprint):  # somebody began to use it
                return self.make_room(num_bytes, keep)
        return None

    def remove(self, fingerprint: str) -> bool:
        """Delete what is here of a model, unless it is in use; return whether it is gone."""
        folder = self._folder(fingerprint)
        with storing(self.folder, 0), unused(self._use_lock(fingerprint)) as is_unused:
            if is_unused:
                (folder / MANIFEST).unlink(missing_ok=True)  # first, so that half a model is not taken for one
                shutil.rmtree(folder, ignore_errors=True)
        return is_unused

    def _is_idle(self, fingerprint: str) -> bool:
        with storing(self.folder, 0), unused(self._use_lock(fingerprint)) as is_unused:
            return is_unused

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [folder for folder in self.folder.iterdir() if _FINGERPRINT.fullmatch(folder.name) and folder.is_dir()]

    def _folder(self, fingerprint: str) -> Path:
        if _FINGERPRINT.fullmatch(fingerprint) is None:
            raise CheckpointError(f"{ascii(fingerprint)[:80]} is no model's fingerprint. The other side is of another version.")
        return self.folder / fingerprint

    def _use_lock(self, fingerprint: str) -> Path:
        return self.folder / _LOCKS / fingerprint


def choose_evictions(models: Sequence[StoredSummary], num_bytes: int) -> list[StoredSummary]:
    """Return the first of `models` that take `num_bytes` together, or all of them."""
    chosen: list[StoredSummary] = []
    for model in models:
        if sum(other.num_bytes for other in chosen) >= num_bytes:
            break
        chosen.append(model)
    return chosen


def _summary(folder: Path) -> StoredSummary | None:
    """What lies in `folder`; None where it went away meanwhile."""
    with suppress(FileNotFoundError):
        files = {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        table = BlockTableFile(folder.name, "")
        with suppress(CheckpointError):
            table = BlockTableFile.read(folder / TABLE)
        parts = tuple(part_name(file) for file, (size, _) in table.files.items() if files.get(file) == size)
        return StoredSummary(folder.name, table.name, sum(files.values()), parts, folder.stat().st_mtime)
    return None
