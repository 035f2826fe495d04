"""The Python face of layermesh: a model that is ready to answer."""

import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, Unpack

from layermesh.coordinator.answer import Answer, Token
from layermesh.coordinator.generation import Answering, Limits, generate
from layermesh.coordinator.sampling import Sampler
from layermesh.local import LocalModel
from layermesh.meter import Meter
from layermesh.request import Request
from layermesh.settings import GenerationSettings, OpeningOptions, Prompt, check_names
from layermesh.shared.errors import BudgetError, UsageError
from layermesh.shared.frames import SessionId
from layermesh.shared.library import DEFAULT_MODEL

LEAST_NEW_TOKENS = 64  # what an answer may shrink to where memory is short and nobody asked for a length


@dataclass(slots=True)
class _Outcome:
    """What becomes of a stream. Apart from it, so that a stream that is dropped goes, and its memory, at once."""

    answer: Answer | None = None
    cut_to: int | None = None


class TokenStream:
    """The tokens of an answer as they are made.

    Memory is set aside with the first token and given back with the last, by `close`, or when the stream is dropped.
    `greedy` is whether the likeliest token is taken each time.
    """

    def __init__(self, tokens: Generator[Token], outcome: _Outcome, *, greedy: bool) -> None:
        self.greedy = greedy
        self._tokens = tokens
        self._outcome = outcome

    @property
    def answer(self) -> Answer | None:
        """The whole answer, once all tokens have been taken."""
        return self._outcome.answer

    @property
    def cut_to(self) -> int | None:
        """The most tokens that memory had room for; None where it had enough."""
        return self._outcome.cut_to

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """End early and forget the session."""
        self._tokens.close()


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
        self.local = LocalModel(str(model), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give the memory back; there are no answers any more."""
        self._closed = True
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

    def stream(self, prompt: Prompt, **settings: Unpack[GenerationSettings]) -> TokenStream:
        """Answer as `generate` does, token by token: iterate over the result, then take its `answer`.

        A BudgetError comes with the first token.
        """
        began = time.monotonic()
        check_names(settings, GenerationSettings, "an answer")
        self._check_open()
        request = Request.make(self.local, prompt, settings)
        outcome = _Outcome()
        return TokenStream(self._run(request, outcome, began), outcome, greedy=request.params.greedy)

    def _run(self, request: Request, outcome: _Outcome, began: float) -> Generator[Token]:
        self._check_open()
        meter = Meter(self.local, began)
        text, session = request.text, SessionId(uuid.uuid4().hex)
        try:
            limits, chunk = self._reserve(session, request)
            if limits != request.limits:
                outcome.cut_to = limits.max_new_tokens
            sampler = Sampler(request.params, request.prompt_ids)
            answering = Answering(session, request.prompt_ids, sampler, limits, chunk)
            for token_id in generate(self.local.pipeline, answering):
                meter.token()
                piece = text.push(token_id)
                if text.stopped:
                    answering.finish_reason = "stop"
                if answering.finish_reason is not None:
                    piece += text.finish()
                    outcome.answer = self._answer(answering, request, meter)
                yield Token(token_id, piece)
                if answering.finish_reason is None:
                    self._check_open()
        finally:
            self.local.pipeline.release(session)

    def _answer(self, answering: Answering, request: Request, meter: Meter) -> Answer:
        assert answering.finish_reason is not None
        return Answer(
            text=request.text.text,
            token_ids=list(answering.token_ids),
            prompt_tokens=len(request.prompt_ids),
            finish_reason=answering.finish_reason,
            seed=request.params.seed,
            model=self.local.name,
            plan=self.local.plan(measured=False),
            memory=meter.memory(),
            stream=meter.stream(answering.num_sweeps),
            timings=meter.timings(),
        )

    def _reserve(self, session: SessionId, request: Request) -> tuple[Limits, int]:
        """Make room for prompt and answer; an answer whose length nobody asked for may be cut to what fits."""
        limits, num_prompt = request.limits, len(request.prompt_ids)
        while True:
            try:
                return limits, self.local.reserve(session, num_prompt + limits.max_new_tokens, num_prompt)
            except BudgetError:
                if not request.flexible or limits.max_new_tokens // 2 < LEAST_NEW_TOKENS:
                    raise
                limits = replace(limits, max_new_tokens=limits.max_new_tokens // 2)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self.local.name} is closed. Open it again with LayerMesh(...).")
