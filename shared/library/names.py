"""What the name of a model can be: a path, a name of the catalog, or a place on the hub."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from layermesh.shared.errors import CheckpointError

_PATH_STARTS: Final = ("./", "../", ".\\", "..\\", "/", "\\", "~")
_MODEL_SUFFIXES: Final = (".gguf", ".safetensors", ".bin")
_HUB: Final = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::([\w./-]+))?", re.ASCII)
_FILE_PART: Final = re.compile(r"[\w.-]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """`owner/name`, or `owner/name:file` for one GGUF model of that repository, in one file or several."""

    repo_id: str
    file: str | None = None

    def __str__(self) -> str:
        return self.repo_id if self.file is None else f"{self.repo_id}:{self.file}"

    @classmethod
    def parse(cls, name: str) -> "HubName | None":
        """Return the place on the hub that `name` is written like, None when it is not written like one."""
        match = _HUB.fullmatch(name)
        return None if match is None else cls(match[1], match[2])


def looks_like_path(name: str) -> bool:
    """Return whether somebody who writes `name` means a file or folder of their own."""
    if HubName.parse(name) not in (None, HubName(name)):  # owner/name:file.gguf
        return False
    return name in {".", ".."} or name.startswith(_PATH_STARTS) or name.lower().endswith(_MODEL_SUFFIXES)


def check_file_name(name: str, whose: str) -> str:
    """Return `name`, a file's path in the model `whose`; raises CheckpointError if it could lead anywhere else."""
    if not all(_FILE_PART.fullmatch(part) and part not in {".", ".."} for part in name.split("/")):
        raise CheckpointError(
            f"{whose} names a file {name!r}, which is no plain file name. That is either a mistake or an attack: "
            "nothing was downloaded. Tell its owner, or take another model."
        )
    return name


def check_no_escape(names: Iterable[str], whose: str) -> None:
    """Raise CheckpointError if one of the file names leads out of its folder, wanted or not."""
    for name in names:
        if "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            check_file_name(name.replace("\\", "/../"), whose)


def asked(model: str) -> str:
    """Return what a model is called from any folder: a path from the root on, anything else as it is."""
    return str(Path(model).absolute()) if looks_like_path(model) else model
