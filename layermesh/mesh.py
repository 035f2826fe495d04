"""The Python face of layermesh: a model that is ready to answer."""

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from layermesh.coordinator.answer import Answer, Token
from layermesh.coordinator.generation import Limits, generate
from layermesh.coordinator.journal import Beginning, Lost, OptionalJournal, read_journal
from layermesh.local import LocalModel
from layermesh.many import AnswerStream
from layermesh.reply import Reply
from layermesh.request import Request
from layermesh.settings import (
    MAX_SESSIONS,
    RESULT_OPTIONS,
    GenerationSettings,
    OpeningOptions,
    Prompt,
    check_names,
    check_sessions,
    is_alone,
)
from layermesh.shared.errors import UsageError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from layermesh.shared.library import DEFAULT_MODEL
from layermesh.shared.library.names import asked
from layermesh.speed_notes import note_speed
from layermesh.token_stream import StreamOutcome, TokenStream

if TYPE_CHECKING:
    from layermesh.coordinator.registry import Registry
    from layermesh.workers import Workers


def _workers(local: LocalModel, registry: "Registry", options: OpeningOptions) -> "Workers":
    from layermesh.workers import Workers

    return Workers(local, registry, spread=options.get("spread", False))


class LayerMesh:
    """A language model, run layer by layer within the memory it is allowed.

    `model` is a Hugging Face folder, a GGUF file, a hub id or a pulled name; `OpeningOptions` says what else can be said.
    Close it, or use it as a context manager. Raises LayermeshError's children: ModelError, UsageError, ResourceError.

        with LayerMesh("Qwen/Qwen3-8B", host_memory="4GB") as mesh:
            print(mesh.generate("Why is the sky blue?").text)
    """

    def __init__(self, model: str = DEFAULT_MODEL, **options: Unpack[OpeningOptions]) -> None:
        check_names(options, OpeningOptions, "LayerMesh")
        self._closed = False
        self.asked = asked(str(model))
        self._options = {name: value for name, value in options.items() if name in RESULT_OPTIONS}
        with ExitStack() as opened:
            registry = None
            if not is_alone(options):
                from layermesh.coordinator.registry import Registry

                workers, discover = options.get("workers", ()), options.get("discover", True)
                registry = opened.enter_context(Registry(workers, discover=discover))  # looks around while the model is opened
            self.local = LocalModel(str(model), **options)
            opened.callback(self.local.close)
            self.workers = None if registry is None else _workers(self.local, registry, options)
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give the memory back; there are no answers any more."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.workers is not None:
                self.workers.close()
        finally:
            self.local.close()

    def generate(self, prompt: Prompt, **settings: Unpack[GenerationSettings]) -> Answer:
        """Answer `prompt`: a text, a conversation (`[{"role": ..., "content": ...}]`) or a list of token ids.

        A text is put into the model's chat template, after `system`, unless `raw`; `GenerationSettings` has all settings. It
        ends with a token or a string that means so, with `max_new_tokens`, or at the end of the model's context. Raises
        UsageError for a prompt or values that make no sense, BudgetError where the memory does not suffice.
        """
        stream = self.stream(prompt, **settings)
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(
        self,
        prompt: Prompt,
        *,
        journal: Path | None = None,
        journal_lost: Lost | None = None,
        **settings: Unpack[GenerationSettings],
    ) -> TokenStream:
        """Answer as `generate` does, token by token: iterate over the result, then take its `answer`.

        With a `journal` each token is on the disk there before it is given out, for `resume`; a whole answer leaves none. A
        journal that cannot be written is an error, with the first token or a later one, unless there is `journal_lost`: that
        is called with the error, and the answer goes on. A BudgetError comes with the first token.
        """
        began = time.monotonic()
        check_names(settings, GenerationSettings, "an answer")
        self._get_ready()
        request = Request.make(self.local, prompt, settings)
        outcome = StreamOutcome()
        written = partial(OptionalJournal, journal, journal_lost)
        return TokenStream(self._run(request, outcome, began, written), outcome, greedy=request.params.greedy)

    def resume(self, journal: Path, *, journal_lost: Lost | None = None) -> TokenStream:
        """Go on with an answer that was interrupted: all of its tokens come, those that there were first.

        `journal_lost` is what it is for `stream`. Raises UsageError for a file that is no journal, or one of another model.
        """
        began = time.monotonic()
        beginning, known = read_journal(journal)
        self._get_ready()
        if beginning.model != self.asked:
            raise UsageError(f"{journal} has an answer of {beginning.model}, and this is {self.asked}.")
        request, outcome = Request.again(self.local, beginning), StreamOutcome()
        tokens = self._run(request, outcome, began, partial(OptionalJournal, journal, journal_lost), beginning, known)
        return TokenStream(tokens, outcome, greedy=request.params.greedy)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        each: Iterable[GenerationSettings] | None = None,
        max_sessions: int = MAX_SESSIONS,
        **settings: Unpack[GenerationSettings],
    ) -> list[Answer]:
        """Answer many prompts in the same sweeps and return the answers in the order of the prompts.

        Each answer is the one that `generate` gives. As many as there is memory for share a sweep, `max_sessions` at most;
        finished ones leave and waiting ones board before the next. `each` has, for each prompt, the settings that differ.
        Raises UsageError or BudgetError for a prompt that cannot be answered, before anything is computed, and the error of the
        first that fails later; with `stream_many` the others keep their answers.
        """
        requests = [cache(make) for make in self._requests(prompts, each, settings, max_sessions)]
        for make in requests:
            make().fit(self.local.chunk_alone)
        answers: dict[int, Answer] = {}
        with AnswerStream(self.local, requests, max_sessions, self._check_open) as stream:
            for finished in stream:
                if finished.error is not None:
                    raise finished.error
                assert finished.answer is not None
                answers[finished.index] = finished.answer
        return [answers[index] for index in range(len(requests))]

    def stream_many(
        self,
        prompts: Iterable[Prompt],
        *,
        each: Iterable[GenerationSettings] | None = None,
        max_sessions: int = MAX_SESSIONS,
        **settings: Unpack[GenerationSettings],
    ) -> AnswerStream:
        """Answer as `generate_many` does and give each answer as soon as it is finished, with the index of its prompt.

        A prompt that cannot be answered comes back with its error and takes no other with it.
        """
        return AnswerStream(self.local, self._requests(prompts, each, settings, max_sessions), max_sessions, self._check_open)

    def _requests(
        self,
        prompts: Iterable[Prompt],
        each: Iterable[GenerationSettings] | None,
        settings: GenerationSettings,
        max_sessions: int,
    ) -> list[Callable[[], Request]]:
        self._get_ready()
        check_sessions(max_sessions)
        given = list(prompts)
        own: list[GenerationSettings] = [{} for _ in given] if each is None else list(each)
        if len(own) != len(given):
            raise UsageError(f"`each` has settings for {len(own)} prompts, and there are {len(given)}.")
        merged: list[GenerationSettings] = [{**settings, **one} for one in own]
        for one in merged:
            check_names(one, GenerationSettings, "an answer")
        return [partial(Request.make, self.local, prompt, one) for prompt, one in zip(given, merged, strict=True)]

    def _run(
        self,
        request: Request,
        outcome: StreamOutcome,
        began: float,
        journal: Callable[[], OptionalJournal],
        beginning: Beginning | None = None,
        known: Sequence[int] = (),
    ) -> Generator[Token]:
        self._check_open()
        session = SessionId(uuid.uuid4().hex)
        line = self.local.line
        with ExitStack() as held:
            try:
                limits, chunk = self._reserve(request, session, beginning)
                if limits != request.limits:
                    outcome.cut_to = limits.max_new_tokens
                reply = Reply(self.local, request, session, limits, chunk, began, known)
                written = held.enter_context(journal())
                if beginning is None:
                    written.begin(request.beginning(self.asked, self._options, limits, chunk))
            except BaseException:
                line.release(session)
                raise
            for token_id in held.enter_context(closing(generate(line, reply.answering))):  # which releases the session
                outcome.num_tokens += 1
                outcome.differs = reply.answering.differs
                if outcome.num_tokens > len(known):
                    written.add(token_id)
                token = reply.take(token_id)
                outcome.answer = reply.answer
                if reply.answer is not None:
                    written.finish()
                yield token
                if reply.answer is None:
                    self._check_open()
        if self.workers is not None and outcome.answer is not None:
            note_speed(self.local, outcome.answer)

    def _reserve(self, request: Request, session: SessionId, beginning: Beginning | None) -> tuple[Limits, int]:
        """Make room for a session; one that goes on needs the room that it had."""
        if beginning is None:
            return request.fit(partial(self.local.reserve, session))
        size = SequenceSize(len(request.prompt_ids) + request.limits.max_new_tokens, beginning.chunk_tokens)
        self.local.line.reserve(session, size)
        return request.limits, beginning.chunk_tokens

    def _get_ready(self) -> None:
        """Look which machines there are now, unless answers are under way on those that there were."""
        self._check_open()
        line = self.local.line
        if self.workers is not None and not line.sessions:
            self.workers.engage()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self.local.name} is closed. Open it again with LayerMesh(...).")
