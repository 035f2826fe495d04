"""`layermesh generate --input`: a line for each answer, everything else to stderr."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from layermesh.ask import Ask
from layermesh.batch import Batch
from layermesh.interrupts import check_interrupt, ending, interrupt_check
from layermesh.settings import GenerationSettings
from layermesh.shared.errors import LayermeshError
from layermesh.shared.units import format_bytes
from layermesh.sweep_place import SweepPlace
from layermesh.terminal import StatusLine, note

if TYPE_CHECKING:
    from layermesh.many import Finished, Progress
    from layermesh.mesh import LayerMesh
    from layermesh.shared.model.blocks import Block

_BAR_CHARS: Final = 20
_KEPT: Final = ("text", "token_ids", "prompt_tokens", "finish_reason", "seed", "model")


def answer_batch(
    input_path: str,
    output_path: str | None,
    settings: GenerationSettings,
    opening: "Callable[[], AbstractContextManager[LayerMesh]]",
    *,
    max_sessions: int,
    quiet: bool,
) -> None:
    """Answer what has no answer yet. Whatever is wrong with the files is said before `opening` the model."""
    with ending(at_once=True):
        batch = Batch.open(input_path, output_path, settings)
    with batch:
        if batch.waiting:
            with opening() as mesh:
                print_answers(mesh, batch, max_sessions=max_sessions, quiet=quiet)
        elif not quiet:
            note(f"[all {len(batch.asks)} prompts have their answer in {output_path}]")


def print_answers(mesh: "LayerMesh", batch: Batch, *, max_sessions: int, quiet: bool) -> None:
    """Answer what waits of `batch`. Raises LayermeshError at the end if a prompt got no answer."""
    batch.begin(mesh.local.name)
    asks, num_failed = batch.waiting, 0
    prompts, each = [ask.prompt for ask in asks], [ask.settings for ask in asks]
    line = StatusLine()
    with mesh.stream_many(prompts, each=each, max_sessions=max_sessions) as stream:
        watcher = _Watcher(mesh, stream.progress, len(batch.asks), len(asks), None if quiet else line)
        mesh.local.stage.watcher = watcher.block
        mesh.local.on_wait = watcher.wait
        try:
            for finished in stream:
                check_interrupt()
                line.clear()
                num_failed += finished.error is not None
                batch.write(_line(asks[finished.index], finished))
                watcher.num_written += 1
        except BaseException:
            line.clear()
            if not quiet:
                note(watcher.interrupted(resumes=batch.output is not None))
            raise
    line.clear()
    if not quiet:
        note(watcher.summary())
    if num_failed:
        again = " The same command tries them again." if batch.output is not None else ""
        raise LayermeshError(f"{num_failed} of {len(batch.asks)} prompts got no answer; their lines say why.{again}")


def _line(ask: Ask, finished: "Finished") -> dict[str, Any]:
    line = {"id": ask.id, "index": ask.index, "request": ask.digest}
    if finished.answer is None:
        return line | {"error": str(finished.error)}
    return line | {name: finished.answer[name] for name in _KEPT}


class _Watcher:
    """Follows the blocks of each sweep, for the status line, and ends it where a signal was swallowed."""

    def __init__(
        self, mesh: "LayerMesh", progress: "Progress", num_prompts: int, num_waiting: int, line: StatusLine | None
    ) -> None:
        self.num_written = 0
        self._progress = progress
        self._num_prompts = num_prompts
        self._num_before = num_prompts - num_waiting
        self._line = line
        self._stage = mesh.local.stage
        self._place = SweepPlace(mesh.local.definition.num_layers)
        self._budget_bytes = mesh.local.host_budget_bytes
        self._began = time.monotonic()
        self._bytes_before = self._stage.files.num_bytes
        self._check = interrupt_check()

    def block(self, block: "Block") -> None:
        self._check()
        self._show(f", {self._place.at(block)}")

    def wait(self) -> None:
        """Other machines compute."""
        check_interrupt()
        self._show("")

    def _show(self, place: str) -> None:
        if self._line is None:
            return
        done = self._num_before + self._progress.num_finished
        bar = "#" * (_BAR_CHARS * done // self._num_prompts)
        figures = f"{done}/{self._num_prompts}, {self._progress.num_aboard} aboard, {self._rate:.2f} tok/s"
        self._line.show(f"[{bar:<{_BAR_CHARS}}] {figures}{place}")

    def interrupted(self, *, resumes: bool) -> str:
        done = f"{self._num_before + self.num_written} of {self._num_prompts} done"
        return f"[{done}; the same command goes on from there]" if resumes else f"[{done}]"

    def summary(self) -> str:
        read = self._stage.files.num_bytes - self._bytes_before
        num_tokens = self._progress.num_tokens
        parts = [f"{self.num_written} of {self._num_prompts} prompts", f"{num_tokens} tokens", f"{self._rate:.2f} tok/s"]
        if num_tokens and self._stage.residency is not None and self._stage.residency.streamed_bytes:
            parts.append(f"{format_bytes(read / num_tokens)}/token from disk")
        if self._num_before:
            parts.append(f"{self._num_before} were done before")
        return f"[{', '.join(parts)}]"

    @property
    def _rate(self) -> float:
        """Tokens per second of all answers together."""
        return self._progress.num_tokens / max(time.monotonic() - self._began, 1e-3)
