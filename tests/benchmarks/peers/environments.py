"""The peers' virtual environments: made on first use, kept in the benchmarks' folder, remade when their pins change."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from tests.benchmarks.peers.cache import bench_home


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs installed; `build_settings` are environment variables of what pip compiles."""

    name: str
    requirements: tuple[str, ...]
    build_settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return bench_home() / "environments" / self.name

    @property
    def recipe(self) -> str:
        """What the environment was made from; another recipe, another environment."""
        return json.dumps([sys.version, self.requirements, dict(self.build_settings)])

    def python(self) -> Path:
        """Return its interpreter, after installing what is not there yet (llama.cpp is compiled: minutes)."""
        python, made_from = self.folder / "bin" / "python", self.folder / "recipe.json"
        self.folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if not made_from.is_file() or made_from.read_text() != self.recipe:
                print(f"installing {', '.join(self.requirements)} into {self.folder}", flush=True)
                shutil.rmtree(self.folder, ignore_errors=True)
                venv.create(self.folder, with_pip=True)
                self._install(python)
                made_from.write_text(self.recipe)
        return python

    def _install(self, python: Path) -> None:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        log = self.folder / "install.log"
        with log.open("w") as output:
            environ = os.environ | dict(self.build_settings)
            done = subprocess.run([*pip, *self.requirements], env=environ, stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name} could not be installed; pip's last words:\n{log.read_text()[-2000:]}")


TORCH = "torch==2.13.0"  # the release that layermesh is tested with, so that all compute with the same kernels
AIRLLM = Environment("airllm", (TORCH, "transformers==5.23.0", "airllm==4.0.0"))
ACCELERATE = Environment("accelerate", (TORCH, "transformers==5.23.0", "accelerate==1.15.0"))
LLAMA_CPP = Environment(
    "llama_cpp",
    ("--no-cache-dir", "--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36"),
    {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)},
)
