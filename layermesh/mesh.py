"""The Python face of layermesh: a model that is ready to answer."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeGuard, cast

from layermesh.coordinator.answer import Answer, Memory, StreamFigures, Timings, Token
from layermesh.coordinator.chat import Message
from layermesh.coordinator.generation import Answering, Limits, generate
from layermesh.coordinator.sampling import Sampler, SamplingParams
from layermesh.coordinator.stop_tokens import stop_token_ids
from layermesh.coordinator.text_stream import TextStream
from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.local import LocalModel
from layermesh.shared.errors import BudgetError, CheckpointError, UsageError
from layermesh.shared.frames import SessionId
from layermesh.shared.library import DEFAULT_MODEL, Progress

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]

DEFAULT_NEW_TOKENS = 512
LEAST_NEW_TOKENS = 64  # what an answer may shrink to where memory is short and nobody asked for a length


class TokenStream:
    """The tokens of an answer as they are made; `answer` is there once they have all been taken."""

    def __init__(self, run: Callable[["TokenStream"], Iterator[Token]]) -> None:
        self.answer: Answer | None = None
        self._tokens = run(self)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        """End early and forget the session."""
        close = getattr(self._tokens, "close", None)
        if close is not None:
            close()


class LayerMesh:
    """A language model, run layer by layer within the memory it is allowed.

    `model` is a Hugging Face folder, a GGUF file, a hub id or a pulled name. `device` is "cpu", "cuda" or "cuda:N"
    (None: the best there is), budgets are bytes or text such as "4GB" (None: most of what is free), `dtype` is
    "float32", "bfloat16" or "float16" (None: the checkpoint's own where the device does it well). Close it, or use it
    as a context manager. Raises LayermeshError's children: ModelError, UsageError, ResourceError.

        with LayerMesh("Qwen/Qwen3-8B", host_memory="4GB") as mesh:
            print(mesh.generate("Why is the sky blue?").text)
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        device: str | None = None,
        device_memory: int | str | None = None,
        host_memory: int | str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._closed = False
        self.local = LocalModel(
            str(model),
            device=device,
            device_memory=device_memory,
            host_memory=host_memory,
            dtype=dtype,
            revision=revision,
            offline=offline,
            progress=progress,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and give the memory back; there are no answers any more."""
        self._closed = True
        self.local.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        ignore_eos: bool = False,
    ) -> Answer:
        """Answer `prompt`: a text, a conversation (`[{"role": ..., "content": ...}]`) or a list of token ids.

        A text is put into the model's chat template, after `system`, unless `raw`. What is not given comes from the
        model's generation_config.json; `temperature` 0 is greedy. It ends with a token or a string that means so, with
        `max_new_tokens` (512 unless given), or at the end of the model's context; `ignore_eos` goes on past the former.
        Raises UsageError for a prompt or values that make no sense, BudgetError where the memory does not suffice.
        """
        stream = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            system=system,
            raw=raw,
            ignore_eos=ignore_eos,
        )
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        system: str | None = None,
        raw: bool = False,
        ignore_eos: bool = False,
    ) -> TokenStream:
        """Answer as `generate` does, token by token: iterate over the result, then take its `answer`."""
        began = time.monotonic()
        if self._closed:
            raise UsageError(f"{self.local.name} is closed. Open it again with LayerMesh(...).")
        stop = _stop_strings(stop)
        tokenizer = self._tokenizer(prompt)
        prompt_ids = self._encode(prompt, tokenizer, system=system, raw=raw)
        limits = self._limits(len(prompt_ids), max_new_tokens, tokenizer, chat=not raw, ignore_eos=ignore_eos)
        params = self._params(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        text = TextStream(tokenizer, stop)
        session = SessionId(uuid.uuid4().hex)
        limits, chunk = self._reserve(session, len(prompt_ids), limits, flexible=max_new_tokens is None)
        answering = Answering(session, prompt_ids, Sampler(params, prompt_ids), limits, chunk)
        return TokenStream(lambda stream: self._run(stream, answering, text, params.seed, len(prompt_ids), began))

    def _run(
        self, stream: TokenStream, answering: Answering, text: TextStream, seed: int, num_prompt: int, began: float
    ) -> Iterator[Token]:
        meter = _Meter(self.local, began)
        for token_id in generate(self.local.pipeline, answering):
            meter.token()
            piece = text.push(token_id)
            if text.stopped:
                answering.finish_reason = "stop"
            if answering.finish_reason is not None:
                piece += text.finish()
                stream.answer = self._answer(answering, text, seed, num_prompt, meter)
            yield Token(token_id, piece)

    def _answer(self, answering: Answering, text: TextStream, seed: int, num_prompt: int, meter: "_Meter") -> Answer:
        assert answering.finish_reason is not None
        return Answer(
            text=text.text,
            token_ids=list(answering.token_ids),
            prompt_tokens=num_prompt,
            finish_reason=answering.finish_reason,
            seed=seed,
            model=self.local.name,
            plan=self.local.plan(measured=False),
            memory=self._memory(),
            stream=meter.stream(),
            timings=meter.timings(),
        )

    def _memory(self) -> Memory:
        local = self.local
        on_host = local.device.type == "cpu"
        return Memory(
            device_peak_bytes=0 if on_host else local.stage.peak_bytes,
            host_peak_bytes=local.stage.peak_bytes if on_host else local.stage.staging_bytes,
            device_budget_bytes=local.device_budget_bytes,
            host_budget_bytes=local.host_budget_bytes,
        )

    def _params(self, **given: Any) -> SamplingParams:
        """Put together what was given and what the model's generation_config.json says; each answers for its own."""
        try:
            SamplingParams.resolve({}, **given)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{error}.") from error
        try:
            return SamplingParams.resolve(self.local.generation_config, **given)
        except (ValueError, TypeError) as error:
            path = self.local.checkpoint.config_dir / "generation_config.json"
            raise CheckpointError(f"{path} cannot be meant so: {error}. Correct or remove it.") from error

    def _tokenizer(self, prompt: Prompt) -> Tokenizer | None:
        """The tokenizer; a model may do without one when it is given token ids."""
        if _is_ids(prompt) and self.local.checkpoint.tokenizer_dir is None:
            return None
        return self.local.tokenizer or Tokenizer.load(None, self.local.name)

    def _encode(self, prompt: Prompt, tokenizer: Tokenizer | None, *, system: str | None, raw: bool) -> list[int]:
        if _is_ids(prompt):
            if system is not None:
                raise UsageError("a system message goes with a text, not with token ids. Leave out --system.")
            token_ids = list(prompt)
        elif isinstance(prompt, str) and not prompt.strip() and not raw:
            raise UsageError("the prompt is empty. Say something to the model.")
        else:
            assert tokenizer is not None
            token_ids = tokenizer.encode(cast("str | Sequence[Message]", prompt), system=system, raw=raw)
        if not token_ids:
            raise UsageError("the prompt is empty. Say something to the model.")
        vocab_size = self.local.definition.vocab_size
        if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise UsageError(
                f"token ids run from 0 to {vocab_size - 1} for {self.local.name}; "
                f"the prompt has {min(token_ids)} to {max(token_ids)}."
            )
        return token_ids

    def _reserve(self, session: SessionId, num_prompt: int, limits: Limits, *, flexible: bool) -> tuple[Limits, int]:
        """Make room for prompt and answer; an answer whose length nobody asked for may be cut to what fits."""
        while True:
            try:
                return limits, self.local.reserve(session, num_prompt + limits.max_new_tokens, num_prompt)
            except BudgetError:
                if not flexible or limits.max_new_tokens // 2 < LEAST_NEW_TOKENS:
                    raise
                limits = replace(limits, max_new_tokens=limits.max_new_tokens // 2)

    def _limits(
        self, num_prompt: int, max_new_tokens: int | None, tokenizer: Tokenizer | None, *, chat: bool, ignore_eos: bool
    ) -> Limits:
        if max_new_tokens is not None and not (_is_whole(max_new_tokens) and max_new_tokens >= 1):
            raise UsageError(f"an answer has a whole number of tokens and at least one, not {max_new_tokens!r}.")
        room = self.local.definition.context_length
        wanted = max_new_tokens or DEFAULT_NEW_TOKENS
        if room is not None and num_prompt >= room:
            raise UsageError(
                f"the prompt has {num_prompt} tokens and {self.local.name} takes at most {room}, its answer included. "
                "Shorten the prompt."
            )
        stop_ids = stop_token_ids(self.local.generation_config, self.local.config, tokenizer, chat=chat)
        new_tokens = wanted if room is None else min(wanted, room - num_prompt)
        return Limits(new_tokens, frozenset() if ignore_eos else stop_ids)


class _Meter:
    """Takes the time and the bytes of one answer."""

    def __init__(self, local: LocalModel, began: float) -> None:
        self._files = local.stage.files
        self._load_seconds = local.load_seconds
        self._began = began
        self._bytes_before = self._first_bytes = self._files.num_bytes
        self._seconds_before = self._files.busy_seconds
        self._first = self._last = began
        self._num_tokens = 0

    def token(self) -> None:
        """Note that a token was made just now."""
        self._last = time.monotonic()
        self._num_tokens += 1
        if self._num_tokens == 1:
            self._first = self._last
            self._first_bytes = self._files.num_bytes

    def stream(self) -> StreamFigures:
        decoded = self._num_tokens - 1
        return StreamFigures(
            disk_bytes=self._files.num_bytes - self._bytes_before,
            disk_seconds=self._files.busy_seconds - self._seconds_before,
            sweeps=self._num_tokens,
            bytes_per_token=(self._files.num_bytes - self._first_bytes) / decoded if decoded else 0.0,
        )

    def timings(self) -> Timings:
        decoded = self._num_tokens - 1
        decode_seconds = self._last - self._first
        return Timings(
            load_seconds=self._load_seconds,
            time_to_first_token_seconds=self._first - self._began,
            decode_seconds=decode_seconds,
            decode_tokens_per_second=decoded / decode_seconds if decoded else None,
            total_seconds=self._last - self._began,
        )


def _is_ids(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes) and all(map(_is_whole, prompt))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) for string in strings):
        raise UsageError(f"stop strings are text, not {stop!r}.")
    return strings
