import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.generation import Answering, Limits, generate
from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.errors import ModelError
from layermesh.shared.frames import Failure, Frame, Logits, SessionId
from layermesh.shared.spans import LayerSpan
from tests.architectures.tiny import PROMPT, reference
from tests.running import opened


class Greedy:
    def sample(self, logits: torch.Tensor) -> int:
        return int(logits.argmax())

    def overrule(self, token_id: int) -> None:
        raise NotImplementedError


class Counting:
    """A model of one layer that says one more than the last token."""

    def __init__(self, fails_at: int | None = None):
        self.span = LayerSpan(0, 1)
        self.frames: list[Frame] = []
        self.released: list[str] = []
        self._fails_at = fails_at

    def reserve(self, session, size):
        raise NotImplementedError

    def forward(self, frames):
        (frame,) = frames
        self.frames.append(frame)
        if len(self.frames) == self._fails_at:
            return [Failure(frame.session, frame.step, ModelError("made up"))]
        scores = torch.zeros(1000)
        scores[frame.token_ids[-1] + 1] = 1
        return [Logits(frame.session, frame.step, scores)]

    def release(self, session):
        self.released.append(session)


def answering(prompt_ids, *, limit=5, stop_ids=(), chunk_tokens=4) -> Answering:
    return Answering(SessionId("a"), prompt_ids, Greedy(), Limits(limit, frozenset(stop_ids)), chunk_tokens)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 6))
def test_a_prompt_goes_in_chunks_and_then_token_by_token(num_prompt, chunk_tokens, limit):
    hop = Counting()
    answer = answering(list(range(num_prompt)), limit=limit, chunk_tokens=chunk_tokens)
    assert list(generate(Pipeline([hop]), answer)) == [num_prompt + i for i in range(limit)]
    assert answer.num_sweeps == len(hop.frames)
    chunks = [list(frame.token_ids) for frame in hop.frames]
    num_chunks = -(-num_prompt // chunk_tokens)
    assert [token_id for chunk in chunks for token_id in chunk] == list(range(num_prompt + limit - 1))
    assert [len(chunk) for chunk in chunks[:-1]][: num_chunks - 1] == [chunk_tokens] * (num_chunks - 1)
    assert all(len(chunk) == 1 for chunk in chunks[num_chunks:])
    assert [frame.step for frame in hop.frames] == list(range(len(hop.frames)))
    assert [frame.position for frame in hop.frames] == [sum(map(len, chunks[:i])) for i in range(len(chunks))]


@pytest.mark.parametrize(
    ("limit", "stop_ids", "token_ids", "reason"),
    [(3, (), [3, 4, 5], "length"), (9, (5,), [3, 4, 5], "stop"), (3, (5,), [3, 4, 5], "stop"), (1, (), [3], "length")],
    ids=["length", "stop token", "both at once", "one token"],
)
def test_answers_end_for_a_reason(limit, stop_ids, token_ids, reason):
    hop, answer = Counting(), answering([1, 2], limit=limit, stop_ids=stop_ids)
    assert list(generate(Pipeline([hop]), answer)) == token_ids == answer.token_ids
    assert answer.finish_reason == reason
    assert hop.released == ["a"]


def test_an_answer_that_is_left_early_is_released_and_computes_no_more():
    hop = Counting()
    tokens = generate(Pipeline([hop]), answering([1], limit=100))
    assert [next(tokens), next(tokens)] == [2, 3]
    tokens.close()
    assert (len(hop.frames), hop.released) == (2, ["a"])


class Elsewhere(Pipeline):
    """A line whose calls are under way as soon as they are given to it, as on other machines."""

    def __init__(self, hop: Counting) -> None:
        super().__init__([hop])
        self.under_way: list[int] = []

    def outcomes(self, frames):
        self.under_way.append(frames[-1].position)
        return super().outcomes(frames)


@pytest.mark.parametrize("broken_off", [False, True])
def test_the_next_token_is_under_way_while_one_is_looked_at(broken_off):
    hop, seen = Counting(), []
    line = Elsewhere(hop)
    tokens = generate(line, answering([1], limit=3))
    for token_id in tokens:
        seen.append((token_id, line.under_way[-1]))
        if broken_off:
            tokens.close()
    assert seen == [(2, 1), (3, 2), (4, 2)][: 1 if broken_off else 3]  # the last is followed by nothing
    assert hop.released == ["a"]


def test_a_reason_given_from_outside_ends_the_answer():
    hop, answer = Counting(), answering([1], limit=100)
    for token_id in generate(Pipeline([hop]), answer):
        if token_id == 4:
            answer.finish_reason = "stop"
    assert answer.token_ids == [2, 3, 4]


def test_a_session_that_fails_is_released():
    hop = Counting(fails_at=3)
    with pytest.raises(ModelError, match="made up"):
        list(generate(Pipeline([hop]), answering([1])))
    assert hop.released == ["a"]


@pytest.mark.parametrize(("prompt_ids", "chunk_tokens"), [([], 4), ([1], 0)], ids=["no prompt", "no chunk"])
def test_answers_to_nothing_are_refused(prompt_ids, chunk_tokens):
    with pytest.raises(ValueError, match="a prompt has tokens"):
        answering(prompt_ids, chunk_tokens=chunk_tokens)


def test_limits_below_one_token_are_refused():
    with pytest.raises(ValueError, match="not 0"):
        Limits(0)


def test_a_real_stage_answers_as_transformers_and_forgets(tiny, one_thread):
    with opened(tiny("llama")) as stage:
        answer = answering(PROMPT, limit=6, chunk_tokens=5)
        assert list(generate(Pipeline([stage]), answer)) == reference(tiny("llama"), PROMPT, 6).token_ids
        assert stage._sessions == {}
        left = generate(Pipeline([stage]), answering(PROMPT, limit=6))
        next(left)
        assert "a" in stage._sessions
        left.close()
        assert stage._sessions == {}
