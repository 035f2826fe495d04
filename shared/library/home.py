"""Where layermesh keeps what it downloads, and what nobody could download again."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NO_HOME: Final = Path("/nonexistent")  # what systems name as the home of users that have none


def home() -> Path:
    """Return layermesh's own folder, which need not exist yet.

    LAYERMESH_HOME if set; otherwise `layermesh` in XDG_CACHE_HOME or in the platform's folder for caches.
    """
    return home_for(sys.platform, os.environ, _user())


def data_home() -> Path:
    """Return the folder of what is not to be lost: keys of the mesh, answers that were interrupted. It need not exist yet.

    LAYERMESH_HOME if set; otherwise `layermesh` in XDG_DATA_HOME or in the platform's folder for data of programs.
    """
    return data_home_for(sys.platform, os.environ, _user())


def _user() -> Path:
    """The user's home folder; one that is nowhere for a user without any, as in containers with a bare user id."""
    try:
        return Path.home()
    except RuntimeError:
        return NO_HOME


def unpacked_folder() -> Path:
    """Return the folder of what is unpacked from GGUF files."""
    return home() / "unpacked"


def home_for(platform: str, environ: Mapping[str, str], user: Path) -> Path:
    """Return what `home` returns on `platform` (a `sys.platform`), for a user with this environment and home folder."""
    if chosen := environ.get("LAYERMESH_HOME"):
        return Path(chosen).expanduser().absolute()
    return _caches(platform, environ, user) / "layermesh"


def data_home_for(platform: str, environ: Mapping[str, str], user: Path) -> Path:
    """Return what `data_home` returns on `platform` (a `sys.platform`), for a user with this environment and home folder."""
    if chosen := environ.get("LAYERMESH_HOME"):
        return Path(chosen).expanduser().absolute()
    if chosen := environ.get("XDG_DATA_HOME"):
        return Path(chosen).expanduser().absolute() / "layermesh"
    folder = user / "Library" / "Application Support" if platform == "darwin" else user / ".local" / "share"
    return folder / "layermesh"


def _caches(platform: str, environ: Mapping[str, str], user: Path) -> Path:
    if chosen := environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser().absolute()
    if platform == "darwin":
        return user / "Library" / "Caches"
    return user / ".cache"
