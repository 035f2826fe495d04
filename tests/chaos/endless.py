"""`layermesh generate` as its user starts it, in the middle of an answer that would take very long."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.processes import Command
from tests.chaos.workers import Worker
from tests.layermesh.cli_checkpoints import add_tokenizer, build_llama, change_config
from tests.mesh.waiting import wait_until


class Generating:
    """A coordinator in a process of its own that talks until it is ended, or `num_tokens` long; entered once it talks."""

    def __init__(self, folder: Path, workers: Sequence[Worker], num_tokens: int = 4000) -> None:
        self._folder, self._workers, self._num_tokens = folder, workers, num_tokens

    def __enter__(self) -> Self:
        model = self._folder / "model"
        if not model.exists():
            change_config(add_tokenizer(build_llama(model)), max_position_embeddings=5000)
        folder = self._folder / "desk"
        where = [option for worker in self._workers for option in ("--worker", worker.address)]
        settings = ["-n", str(self._num_tokens), "--ignore-eos", "--temperature", "2", "--seed", "1", "--spread"]
        arguments = ["generate", "Hello", "-m", os.path.relpath(model, folder), *settings, "--no-discovery", *where]
        environ = {"LAYERMESH_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        self.command = Command(arguments, folder, "generate", environ)
        wait_until(lambda: len(self.command.out) > 20 or not self.command.is_running, 90)
        assert self.command.out, self.command.err
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.command.kill()
        assert self.command.wait(20) is not None
