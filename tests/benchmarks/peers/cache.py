"""Where what takes long to make is kept between runs: environments, checkpoints, offload folders."""

import os
from pathlib import Path


def bench_home() -> Path:
    """Return the benchmarks' folder: `LAYERMESH_BENCH_HOME`, or one in the user's cache folder."""
    named = os.environ.get("LAYERMESH_BENCH_HOME")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(named).expanduser() if named else caches / "layermesh-bench"
    home.mkdir(parents=True, exist_ok=True)
    return home.resolve()


def models_folder() -> Path:
    """Return where all checkpoints lie, and whatever the peers make of them for themselves."""
    return bench_home() / "models"


def all_files(folder: Path) -> list[Path]:
    """Return every file below a folder, if it exists."""
    return [path for path in folder.rglob("*") if path.is_file()]
