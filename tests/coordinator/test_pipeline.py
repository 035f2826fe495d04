import pytest

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.errors import ModelError
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits, SessionId
from layermesh.shared.spans import LayerSpan


class Hop:
    """Passes frames on, the last one with its own name for scores, and fails the sessions in `failing`."""

    def __init__(self, start: int, end: int, last: bool = False, failing: tuple[str, ...] = ()):
        self.span = LayerSpan(start, end)
        self.seen: list[list[str]] = []
        self.reserved: list[tuple[str, SequenceSize]] = []
        self.released: list[str] = []
        self._last = last
        self._failing = failing

    def reserve(self, session, size):
        self.reserved.append((session, size))

    def forward(self, frames):
        self.seen.append([frame.session for frame in frames])
        return [self._one(frame) for frame in frames]

    def _one(self, frame):
        if frame.session in self._failing:
            return Failure(frame.session, frame.step, ModelError(f"{frame.session} failed in {self.span}"))
        if self._last:
            return Logits(frame.session, frame.step, f"scores of {frame.session}")
        return Frame(frame.session, 0, frame.step, frame.position, frame.token_ids, LayerOutput((None,), bare=True))

    def release(self, session):
        self.released.append(session)


FRAMES = [Frame(SessionId(name), 0, 4, 7, (1,)) for name in "abc"]


@pytest.mark.parametrize(
    "spans",
    [[], [(1, 4)], [(0, 2), (3, 4)], [(0, 2), (1, 4)], [(2, 4), (0, 2)]],
    ids=["none", "no first layer", "a hole", "twice", "turned round"],
)
def test_hops_that_do_not_follow_each_other_are_refused(spans):
    with pytest.raises(ValueError, match="follow each other"):
        Pipeline([Hop(*span) for span in spans])


def test_frames_pass_every_hop_and_come_back_in_order():
    hops = [Hop(0, 2), Hop(2, 3), Hop(3, 4, last=True)]
    assert [logits.scores for logits in Pipeline(hops).sweep(FRAMES)] == [f"scores of {name}" for name in "abc"]
    assert [hop.seen for hop in hops] == [[["a", "b", "c"]]] * 3


def test_a_failure_leaves_the_row_and_keeps_its_place():
    hops = [Hop(0, 2, failing=("b",)), Hop(2, 4, last=True, failing=("c",))]
    outcomes = Pipeline(hops).try_sweep(FRAMES)
    assert [(type(outcome), outcome.session) for outcome in outcomes] == [(Logits, "a"), (Failure, "b"), (Failure, "c")]
    assert hops[1].seen == [["a", "c"]]


def test_a_sweep_of_which_one_fails_raises_its_error():
    with pytest.raises(ModelError, match=r"b failed in \[0, 2\)"):
        Pipeline([Hop(0, 2, failing=("b",)), Hop(2, 4, last=True)]).sweep(FRAMES)


def test_reservations_and_releases_reach_every_hop():
    hops = [Hop(0, 2), Hop(2, 4, last=True)]
    pipeline = Pipeline(hops)
    pipeline.reserve(SessionId("a"), SequenceSize(100, 8))
    pipeline.release(SessionId("a"))
    assert [(hop.reserved, hop.released) for hop in hops] == [([("a", SequenceSize(100, 8))], ["a"])] * 2
