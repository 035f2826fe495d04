"""The coordinator's side: a mesh in this process, and answers of which every score is kept."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from layermesh import LayerMesh
from layermesh.coordinator.answer import Answer, Token
from layermesh.coordinator.sampling import Sampler
from layermesh.mesh import TokenStream
from layermesh.settings import OpeningOptions
from tests.mesh.waiting import wait_until

PROMPT = [5, 6, 7, 8, 9, 10, 11]
NUM_TOKENS = 33  # so that something is left to do after the 32nd


@dataclass(slots=True)
class Heard:
    """What came of a request: tokens, the scores each was chosen from as bytes, and when each came."""

    token_ids: list[int] = field(default_factory=list)
    scores: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    answer: Answer | None = None

    def is_equal(self, other: "Heard") -> bool:
        """Whether tokens and scores are those of `other`, to the bit."""
        return (self.token_ids, self.scores) == (other.token_ids, other.scores)

    def difference(self, other: "Heard") -> str:
        """Where it departs from `other` first, and how far; empty where it does not."""
        if len(self.scores) != len(other.scores):
            return f"{len(self.scores)} scores and {len(other.scores)}"
        for number, (mine, theirs) in enumerate(zip(self.scores, other.scores, strict=True)):
            if mine != theirs:
                by = float(np.abs(np.frombuffer(mine, np.float32) - np.frombuffer(theirs, np.float32)).max())
                return f"scores of token {number} by up to {by}"
        return "" if self.token_ids == other.token_ids else "tokens"

    def gap_after(self, moment: float) -> float:
        """Seconds from `moment` to the next token; 0 where there was none any more."""
        return next((at - moment for at in self.times if at > moment), 0.0)


@contextmanager
def listening(heard: Heard) -> Iterator[None]:
    """Keep the scores that tokens are chosen from; for one answer at a time."""
    choose = Sampler.sample

    def sample(sampler: Sampler, logits: Any) -> int:
        heard.scores.append(logits.detach().float().cpu().numpy().tobytes())
        return choose(sampler, logits)

    with mock.patch.object(Sampler, "sample", sample):
        yield


def open_mesh(folder: Path, addresses: Sequence[str], **options: Any) -> LayerMesh:
    """The model in `folder`, divided among the workers at `addresses`, who have nothing but what is sent to them.

    They would find the model where it lies if they were told its whole path.
    """
    asked = OpeningOptions(device="cpu", workers=list(addresses), discover=False, spread=True, alone=False)
    return LayerMesh(os.path.relpath(folder), **{**asked, **options})


def answers(mesh: LayerMesh, heard: Heard, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> Iterator[int]:
    """Yield how many tokens there are, after each; what came is in `heard`."""
    with listening(heard):
        stream = mesh.stream(list(prompt), max_new_tokens=num_tokens, temperature=0, ignore_eos=True)
    while (token := _next(stream, heard)) is not None:
        heard.times.append(time.monotonic())
        heard.token_ids.append(token.id)
        yield len(heard.token_ids)
    heard.answer = stream.answer


def _next(stream: TokenStream, heard: Heard) -> Token | None:
    with listening(heard):
        return next(stream, None)


def ask(mesh: LayerMesh, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> Heard:
    """A whole answer."""
    heard = Heard()
    for _ in answers(mesh, heard, prompt, num_tokens):
        pass
    return heard


def ask_alone(folder: Path, prompt: Sequence[int] = PROMPT, num_tokens: int = NUM_TOKENS) -> Heard:
    """What one machine answers, which nothing can happen to."""
    with LayerMesh(str(folder), device="cpu", alone=True) as mesh:
        return ask(mesh, prompt, num_tokens)


def wait_for_all(mesh: LayerMesh, num_workers: int, seconds: float = 20.0) -> None:
    """Return once the coordinator reaches so many workers."""

    def is_there() -> bool:
        found = mesh.workers.find() if mesh.workers is not None else None
        return found is not None and len(found.peers) == num_workers

    wait_until(is_there, seconds)


def machines(mesh: LayerMesh) -> list[str]:
    """Which workers run something now."""
    return [stage.worker for stage in mesh.local.remote_stages]
