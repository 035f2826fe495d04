from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.boarding import Boarding
from layermesh.coordinator.generation import Answering, Limits
from layermesh.coordinator.pipeline import Pipeline
from layermesh.coordinator.together import Failed, NewToken, Together
from layermesh.shared.errors import BudgetError, CheckpointError, ModelError
from layermesh.shared.frames import Failure, Frame, Logits, SessionId
from layermesh.shared.spans import LayerSpan


class Greedy:
    def sample(self, logits: torch.Tensor) -> int:
        return int(logits.argmax())

    def overrule(self, token_id: int) -> None:
        raise NotImplementedError


class Numb:
    """Finds fault with the scores of its second token."""

    def __init__(self):
        self.num_tokens = 0

    def sample(self, _: torch.Tensor) -> int:
        self.num_tokens += 1
        if self.num_tokens == 2:
            raise ModelError("not numbers")
        return 1

    def overrule(self, token_id: int) -> None:
        raise NotImplementedError


class Counting:
    """A model of one layer that says one more than the last token of each session."""

    def __init__(self, failing: dict[str, int] | None = None):
        self.span = LayerSpan(0, 1)
        self.sweeps: list[list[str]] = []
        self.released: list[str] = []
        self._failing = failing or {}

    def reserve(self, session, size):
        raise NotImplementedError

    def forward(self, frames):
        self.sweeps.append([frame.session for frame in frames])
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Frame):
        if self._failing.get(frame.session) == frame.step:
            return Failure(frame.session, frame.step, ModelError(f"{frame.session} failed"))
        scores = torch.zeros(1000)
        scores[frame.token_ids[-1] + 1] = 1
        return Logits(frame.session, frame.step, scores)

    def release(self, session):
        self.released.append(session)


def session(index: int, *, num_prompt: int = 1, limit: int = 3, sampler=None) -> Answering:
    return Answering(SessionId(str(index)), range(num_prompt), sampler or Greedy(), Limits(limit), 2)


def run(hop: Counting, num_prompts: int, board: Callable[[int], Answering | None], max_sessions: int = 10) -> list:
    return list(Together(Pipeline([hop]), Boarding(num_prompts, max_sessions), board).generate())


def tokens_of(events: list, index: int) -> list[int]:
    return [event.token_id for event in events if isinstance(event, NewToken) and event.index == index]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=12), st.integers(1, 5))
def test_each_gets_its_own_tokens_in_as_few_sweeps_as_there_are_places(prompts, max_sessions):
    hop = Counting()
    sizes = [-(-num_prompt // 2) + limit - 1 for num_prompt, limit in prompts]
    events = run(hop, len(prompts), lambda i: session(i, num_prompt=prompts[i][0], limit=prompts[i][1]), max_sessions)
    for index, (num_prompt, limit) in enumerate(prompts):
        assert tokens_of(events, index) == [num_prompt + i for i in range(limit)]
    assert all(len(sweep) <= max_sessions for sweep in hop.sweeps)
    assert sorted(hop.released) == sorted(str(index) for index in range(len(prompts)))
    ends = [0] * max_sessions  # when each place is free: the first to be free takes the next one
    for size in sizes:
        place = ends.index(min(ends))
        ends[place] += size
    assert len(hop.sweeps) == max(ends)


def test_one_that_fails_leaves_and_its_place_is_taken():
    hop = Counting(failing={"1": 1})
    events = run(hop, 3, session, max_sessions=2)
    assert [(event.index, str(event.error)) for event in events if isinstance(event, Failed)] == [(1, "1 failed")]
    assert [tokens_of(events, index) for index in range(3)] == [[1, 2, 3], [1], [1, 2, 3]]
    assert hop.sweeps == [["0", "1"], ["0", "1"], ["0", "2"], ["2"], ["2"]]
    assert sorted(hop.released) == ["0", "1", "2"]


def test_one_whose_scores_cannot_be_used_fails_alone():
    hop = Counting()
    events = run(hop, 2, lambda index: session(index, sampler=Numb() if index == 0 else None))
    assert [event.index for event in events if isinstance(event, Failed)] == [0]
    assert tokens_of(events, 1) == [1, 2, 3]


def test_one_that_cannot_board_is_turned_away_and_one_without_room_waits():
    aboard, asked = Counting(), []

    def board(index):
        asked.append(index)
        if index == 0:
            raise BudgetError("the model", 1, 2)
        return None if index == 2 and asked.count(2) == 1 else session(index)

    events = run(aboard, 3, board)
    assert [event.index for event in events if isinstance(event, Failed)] == [0]
    assert asked == [0, 1, 2, 2]
    assert aboard.sweeps == [["1"]] * 3 + [["2"]] * 3


def test_a_reason_given_from_outside_ends_a_session():
    hop, sessions = Counting(), [session(index, limit=100) for index in range(2)]
    events = []
    for event in Together(Pipeline([hop]), Boarding(2, 2), sessions.__getitem__).generate():
        events.append(event)
        if event.token_id == 3 + event.index:
            sessions[event.index].finish_reason = "stop"
    assert [tokens_of(events, index) for index in range(2)] == [[1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize("how", ["dropped", "fault"])
def test_all_are_released_whatever_happens(how):
    hop = Counting()
    events = Together(Pipeline([hop]), Boarding(3, 2), session).generate()
    next(events)
    if how == "dropped":
        events.close()
    else:
        hop.forward = fail
        with pytest.raises(CheckpointError, match="disk"):
            list(events)
    assert sorted(hop.released) == ["0", "1"]


def fail(_: object) -> None:
    raise CheckpointError("the disk is gone")
