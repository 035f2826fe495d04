"""From a prompt to an answer: dispatch a sweep, sample, until it is enough."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from layermesh.coordinator.pipeline import Line
from layermesh.shared.frames import Frame, Logits, SessionId

FinishReason = Literal["stop", "length"]


class SamplesTokens(Protocol):
    """Chooses the next token from its scores."""

    def sample(self, logits: torch.Tensor) -> int:
        """Return a token id for `logits`, `[vocab]`."""
        ...

    def overrule(self, token_id: int) -> None:
        """Go on as if `token_id` had been chosen last."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When an answer ends: after `max_new_tokens`, or with one of the `stop_ids`."""

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"an answer has at least one token, not {self.max_new_tokens}")


class Answering:
    """One session from its prompt to its last token: the next frame to send, and what came back.

    The prompt goes in calls of at most `chunk_tokens`, then one token at a time: the same shapes alone and on a mesh, which
    is what makes answers equal to the bit. `known` are tokens that an earlier process chose: they come again, whatever the
    scores, and `differs` says whether the scores spoke for others.
    """

    def __init__(
        self,
        session: SessionId,
        prompt_ids: Sequence[int],
        sampler: SamplesTokens,
        limits: Limits,
        chunk_tokens: int,
        known: Sequence[int] = (),
    ) -> None:
        if not prompt_ids or chunk_tokens < 1:
            raise ValueError(f"a prompt has tokens, which go in chunks of some: not {len(prompt_ids)} by {chunk_tokens}")
        self.session = session
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.differs = False
        self._known = tuple(known)
        self._prompt_ids = tuple(prompt_ids)
        self._sampler = sampler
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._position = 0
        self._step = 0

    @property
    def num_sweeps(self) -> int:
        """How many frames have come back."""
        return self._step

    def next_frame(self) -> Frame:
        """Return the tokens to run next."""
        return self.next_frames()[0]

    def next_frames(self) -> list[Frame]:
        """Return the calls that can follow each other now: the prompt and what is known of the answer, or one token."""
        num_prompt = len(self._prompt_ids)
        if self._position >= num_prompt:
            return [Frame(self.session, 0, self._step, self._position, (self.token_ids[-1],))]
        calls = [
            (start, self._prompt_ids[start : start + self._chunk_tokens])
            for start in range(self._position, num_prompt, self._chunk_tokens)
        ]
        calls += [(num_prompt + number, (token_id,)) for number, token_id in enumerate(self._known)]
        return [
            Frame(self.session, 0, self._step + number, position, token_ids)
            for number, (position, token_ids) in enumerate(calls)
        ]

    def accept(self, frame: Frame, logits: Logits) -> int | None:
        """Take the logits of `frame` and return the new token; None while the prompt goes on."""
        self._position = frame.position + len(frame.token_ids)
        self._step += 1
        if self._position < len(self._prompt_ids):
            return None
        token_id = self._sampler.sample(logits.scores)
        if len(self.token_ids) < len(self._known):
            chosen, token_id = token_id, self._known[len(self.token_ids)]
            if chosen != token_id:
                self.differs = True
                self._sampler.overrule(token_id)
        self.token_ids.append(token_id)
        if token_id in self._limits.stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._limits.max_new_tokens:
            self.finish_reason = "length"
        return token_id


def generate(line: Line, answering: Answering) -> Generator[int]:
    """Yield the token ids of an answer as they are made; the session is released whatever happens.

    While one is looked at, other machines compute the next.
    """
    try:
        frames, calls = _begin(line, answering)
        while frames and not _is_over(answering):  # somebody else may have ended it meanwhile
            last = frames[-1]
            for frame, logits in zip(frames, calls, strict=False):
                token_id = answering.accept(frame, logits)
                ends = frame is last or _is_over(answering)  # perhaps with a token that was known already
                if ends:
                    frames, calls = _begin(line, answering)
                if token_id is not None:
                    yield token_id
                if ends:
                    break
    finally:
        line.release(answering.session)


def _begin(line: Line, answering: Answering) -> tuple[Sequence[Frame], Iterator[Logits]]:
    """Begin the calls that can follow each other now, none once the answer is over, and return them with their logits."""
    if _is_over(answering):
        return (), iter(())
    frames = answering.next_frames()
    return frames, line.run(frames)


def _is_over(answering: Answering) -> bool:
    return answering.finish_reason is not None
