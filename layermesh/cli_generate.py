"""`layermesh generate`: text to stdout as it is made, everything else to stderr."""

import sys
import time
from pathlib import Path

from layermesh.coordinator.answer import Answer
from layermesh.interrupts import check_interrupt, interrupt_check
from layermesh.mesh import LayerMesh
from layermesh.settings import GenerationSettings, Prompt
from layermesh.shared.model.blocks import Block
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.sweep_place import SweepPlace
from layermesh.terminal import StatusLine, harmless, note, print_json
from layermesh.token_stream import TokenStream


def print_answer(
    mesh: LayerMesh, prompt: Prompt | None, settings: GenerationSettings, journal: Path | None, *, as_json: bool, quiet: bool
) -> None:
    """Answer `prompt` on stdout, as text or as one JSON object; without one, go on with the answer in `journal`."""
    line = StatusLine()
    kept = _Kept(journal, None if quiet else line)
    watcher = _Watcher(mesh, None if quiet else line)
    mesh.local.stage.watcher = watcher.block
    mesh.local.on_wait = watcher.wait
    mesh.local.on_progress = watcher.prepare
    if not quiet:
        mesh.local.on_tell = line.note
    shown = harmless if sys.stdout.isatty() else str
    ended = True
    stream: TokenStream | None = None
    try:
        stream = _begin(mesh, prompt, settings, kept)
        for token in stream:
            check_interrupt()
            watcher.num_tokens += 1
            if token.text and not as_json:
                line.clear()
                ended = token.text.endswith("\n")
                sys.stdout.write(shown(token.text))
                sys.stdout.flush()
                line.follow(shown(token.text))
    except BaseException:
        if stream is not None and stream.num_tokens and kept.path is not None and not quiet:
            end_line(line, ended=ended)
            note(f"[{stream.num_tokens} tokens are kept: `layermesh generate --resume {kept.path.stem}` goes on from there]")
            ended = True
        raise
    finally:
        end_line(line, ended=ended)
    assert stream.answer is not None
    if as_json:
        print_json(stream.answer.to_dict())
    if not quiet:
        note(_summary(stream, stream.answer, mesh.local.context_length))
        if stream.differs:
            note("note: this machine computes otherwise than the one that began; the text goes on from what there was")
        for notice in mesh.local.stage.notices:  # there are none before it has run
            note(f"note: {notice}")


class _Kept:
    """The journal of an answer, as long as it is written."""

    def __init__(self, path: Path | None, line: StatusLine | None) -> None:
        self.path = path
        self._line = line

    def lose(self, error: Exception) -> None:
        """Say that it is not written any more."""
        self.path = None
        if self._line is not None:
            self._line.note(cannot_resume(error))


def _begin(mesh: LayerMesh, prompt: Prompt | None, settings: GenerationSettings, kept: _Kept) -> TokenStream:
    if prompt is not None:
        return mesh.stream(prompt, journal=kept.path, journal_lost=kept.lose, **settings)
    assert kept.path is not None
    return mesh.resume(kept.path, journal_lost=kept.lose)


def cannot_resume(error: Exception) -> str:
    """Return what to say where an answer is made that is not kept for --resume."""
    return f"note: this answer cannot be resumed: {harmless(str(error))}"


def end_line(line: StatusLine, *, ended: bool) -> None:
    """Leave the cursor at the beginning of a line of its own."""
    line.clear()
    if not ended:
        sys.stdout.write("\n")
        sys.stdout.flush()


class _Watcher:
    """Follows the blocks of each sweep, for the status line, and ends it where a signal was swallowed."""

    def __init__(self, mesh: LayerMesh, line: StatusLine | None) -> None:
        self.num_tokens = 0
        self._local = mesh.local
        self._preparing: dict[str, str] = {}
        self._place = SweepPlace(mesh.local.definition.num_layers)
        self._line = line
        self._began = time.monotonic()
        self._check = interrupt_check()

    def wait(self) -> None:
        """Other machines compute."""
        check_interrupt()
        if self._line is not None:
            elapsed = max(time.monotonic() - self._began, 1e-3)
            self._line.show(f"{self.num_tokens / elapsed:.2f} tok/s")

    def prepare(self, worker: str, doing: str, done_bytes: int, total_bytes: int) -> None:
        """A worker makes its layers ready."""
        if self._line is not None:
            share = f" {done_bytes / total_bytes:.0%}" if total_bytes else ""
            self._preparing[worker] = f"{harmless(worker)}: {harmless(doing)}{share}"
            self._line.show("; ".join(self._preparing.values()))

    def block(self, block: Block) -> None:
        self._check()
        if self._line is None:
            return
        elapsed = max(time.monotonic() - self._began, 1e-3)
        files = self._local.stage.files
        rate = files.num_bytes / max(files.busy_seconds, 1e-3)
        self._line.show(f"{self._place.at(block)}, {format_bytes(rate)}/s from disk, {self.num_tokens / elapsed:.2f} tok/s")


def _summary(stream: TokenStream, answer: Answer, context_length: int | None) -> str:
    timings, memory = answer.timings, answer.memory
    num_tokens = len(answer.token_ids)
    parts = [f"{num_tokens} token{'s' * (num_tokens != 1)}"]
    if answer.finish_reason == "length":
        parts.append(_why_cut_off(stream, answer, context_length))
    if timings.decode_tokens_per_second is not None:
        parts.append(f"{timings.decode_tokens_per_second:.2f} tok/s")
    parts.append(f"first after {format_seconds(timings.time_to_first_token_seconds)}")
    read = answer.stream
    if read.bytes_per_token and any(stage.streamed_bytes for stage in answer.plan.stages):
        parts.append(f"{format_bytes(read.bytes_per_token)}/token at {format_bytes(read.bytes_per_second)}/s from disk")
    budget = f" of {format_bytes(memory.host_budget_bytes)}" if memory.host_budget_bytes else ""
    parts.append(f"{format_bytes(memory.host_peak_bytes)}{budget} host memory")
    if memory.device_peak_bytes:
        parts.append(f"{format_bytes(memory.device_peak_bytes)} on the device")
    if not stream.greedy:
        parts.append(f"seed {answer.seed}")
    return f"[{', '.join(parts)}]"


def _why_cut_off(stream: TokenStream, answer: Answer, context_length: int | None) -> str:
    if stream.cut_to is not None:
        return f"cut to {stream.cut_to} tokens by the memory allowed"
    if answer.prompt_tokens + len(answer.token_ids) == context_length:
        return f"cut off at the model's context of {context_length}"
    return "cut off at the limit"
