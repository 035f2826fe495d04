import pytest
import torch

from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits, SessionId
from layermesh.worker.kept import KEPT_LOGITS, Allowance, KeptOutcomes, kept_bytes

SESSION = SessionId("s")
BYTES = 16


def frame(step, hidden=None, epoch=0):
    return Frame(SESSION, epoch, step, step, (step,), hidden)


def made(step, fill=0.0):
    return frame(step, LayerOutput((torch.full((1, 1, 4), fill), None), bare=False))


def logits(step):
    return Logits(SESSION, step, torch.zeros(3))


def test_what_was_made_comes_back_with_the_epoch_of_whoever_asks_and_is_a_copy():
    kept, outcome = KeptOutcomes(Allowance(100)), made(0, 1.5)
    kept.add(frame(0), outcome)
    outcome.hidden.tensors[0].zero_()  # buffers are used again
    found = kept.find(frame(0, epoch=4))
    assert (found.epoch, found.hidden.tensors[0].tolist(), found.hidden.tensors[1]) == (4, [[[1.5] * 4]], None)
    assert kept.find(frame(1)) is None
    with pytest.raises(MeshError, match="other tokens in step 0"):
        kept.find(Frame(SESSION, 0, 0, 0, (9,)))


def test_a_session_that_outgrows_the_allowance_cannot_be_replayed_from_and_its_memory_comes_back():
    allowance = Allowance(2 * BYTES)
    kept = KeptOutcomes(allowance)
    for step in range(2):
        kept.add(frame(step), made(step))
    assert kept.goes_on(SESSION, 2)
    assert not kept.goes_on(SESSION, 3)
    assert not allowance.take(1)
    kept.add(frame(2), made(2))
    assert not kept.goes_on(SESSION, 1)
    assert allowance.take(2 * BYTES)
    with pytest.raises(MeshError, match=r"step 1 .* is past, and nothing of it was kept"):
        kept.find(frame(1))
    kept.add(frame(3), made(3))  # no half of a past is kept
    assert not kept.goes_on(SESSION, 1)


def test_dropping_a_session_gives_its_memory_back_and_so_does_its_failure():
    allowance = Allowance(BYTES)
    kept = KeptOutcomes(allowance)
    for ends in (lambda: kept.drop(SESSION), kept.clear, lambda: kept.add(frame(1), Failure(SESSION, 1, MeshError("!")))):
        kept.add(frame(0), made(0))
        assert not allowance.take(1)
        ends()
        assert kept.find(frame(0)) is None
        assert allowance.take(BYTES)
        allowance.give(BYTES)


def test_of_logits_the_last_ones_are_kept_and_still_count():
    kept = KeptOutcomes(Allowance(0))
    for step in range(KEPT_LOGITS + 2):
        kept.add(frame(step), logits(step))
    assert kept.goes_on(SESSION, KEPT_LOGITS + 2)
    assert kept.goes_on(SESSION, 2)
    assert not kept.goes_on(SESSION, 1)  # what came back after it cannot be sent again
    assert kept.find(frame(KEPT_LOGITS + 1)).step == KEPT_LOGITS + 1
    with pytest.raises(MeshError, match="nothing of it was kept"):
        kept.find(frame(1))


def test_a_session_whose_beginning_was_not_seen_cannot_be_replayed_from():
    kept = KeptOutcomes(Allowance(100))
    kept.add(frame(3), made(3))
    assert not kept.goes_on(SESSION, 1)


@pytest.mark.parametrize(("budget_bytes", "expected"), [(1 << 20, 1 << 16), (8 << 30, 64 << 20)])
def test_a_small_budget_spares_a_part_of_it(budget_bytes, expected):
    assert kept_bytes(budget_bytes) == expected
