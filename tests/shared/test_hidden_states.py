import math

import pytest
import torch

from layermesh.coordinator.arrivals import checked
from layermesh.shared.errors import BusyError, MeshError
from layermesh.shared.frames import Failure, Frame, LayerOutput, Logits, SessionId
from layermesh.shared.hidden_states import HiddenStatesError, blamed, check_hidden_states, is_finite
from layermesh.shared.wire import Envelope, Scores

HIDDEN = 8


def output(*tensors):
    return LayerOutput(tensors, bare=len(tensors) == 1)


def spoilt(value, dtype=torch.float32, place=-1):
    hidden = torch.zeros(1, 3, HIDDEN, dtype=dtype)
    hidden.view(-1)[place] = value
    return hidden


MASK = torch.full((1, 1, 3, 3), -math.inf)
FINE = {
    "alone": (output(torch.zeros(1, 3, HIDDEN)), "llama"),
    "bfloat16": (output(torch.ones(1, 3, HIDDEN, dtype=torch.bfloat16)), "llama"),
    "the largest number": (output(spoilt(torch.finfo(torch.float32).max)), "llama"),
    "with an infinite mask": (output(torch.zeros(1, 3, HIDDEN), MASK), "llama"),
    "with whole numbers and nothing": (output(torch.zeros(1, 3, HIDDEN), torch.zeros(2, dtype=torch.int64), None), "llama"),
    "four streams": (output(torch.zeros(1, 3, 4, HIDDEN)), "deepseek_v4"),
    "streams side by side": (output(torch.zeros(1, 3, 4 * HIDDEN)), "qwen4_exp_text"),
    "one token more": (output(torch.zeros(1, 4, HIDDEN)), "xlm"),
}
REFUSED = {
    "nothing": (output(None, MASK), "nothing where hidden states belong"),
    "whole numbers": (output(torch.zeros(1, 3, HIDDEN, dtype=torch.int64)), "int64 where"),
    "double precision": (output(torch.zeros(1, 3, HIDDEN, dtype=torch.float64)), "float64 where"),
    "another width": (output(torch.zeros(1, 3, HIDDEN + 1)), r"\[1, 3, 9\] instead of \[1, 3, 8\]"),
    "another length": (output(torch.zeros(1, 2, HIDDEN)), "shape"),
    "two of a batch": (output(torch.zeros(2, 3, HIDDEN)), "shape"),
    "a dimension more": (output(torch.zeros(1, 1, 3, HIDDEN)), "shape"),
    "a number": (output(torch.zeros(())), "shape"),
    "empty": (output(torch.zeros(1, 0, HIDDEN)), "shape"),
    "NaN": (output(spoilt(math.nan)), "not numbers"),
    "NaN at the beginning": (output(spoilt(math.nan, place=0)), "not numbers"),
    "infinite": (output(spoilt(math.inf)), "not numbers"),
    "infinite the other way": (output(spoilt(-math.inf)), "not numbers"),
    "overflown": (output(spoilt(1e9, torch.float16)), "not numbers"),
    "NaN in bfloat16": (output(spoilt(math.nan, torch.bfloat16)), "not numbers"),
}


@pytest.mark.parametrize(("handed_on", "model_type"), FINE.values(), ids=FINE)
def test_what_families_hand_on_passes(handed_on, model_type):
    check_hidden_states(handed_on, 3, HIDDEN, model_type)


def test_a_width_that_is_not_known_may_be_any():
    check_hidden_states(output(torch.zeros(1, 3, 5)), 3, 0, "llama")
    with pytest.raises(HiddenStatesError, match="shape"):
        check_hidden_states(output(torch.zeros(2, 3, 5)), 3, 0, "llama")


@pytest.mark.parametrize(("handed_on", "said"), REFUSED.values(), ids=REFUSED)
def test_what_no_stage_can_have_computed_is_refused(handed_on, said):
    with pytest.raises(HiddenStatesError, match=said):
        check_hidden_states(handed_on, 3, HIDDEN, "llama")


@pytest.mark.parametrize("shape", [(1, 100, HIDDEN, 9), (1, 3, HIDDEN + 1), (1, 999, HIDDEN), (3,)], ids=str)
def test_unusual_families_have_bounds_too(shape):
    with pytest.raises(HiddenStatesError, match="shape"):
        check_hidden_states(output(torch.zeros(shape)), 3, HIDDEN, "xlm")


def test_one_value_among_millions_is_found_wherever_it_is():
    values = torch.zeros(1 << 20)
    for place in (0, 1, 77_777, (1 << 20) - 1):
        for value in (math.nan, math.inf, -math.inf):
            values[place] = value
            assert not is_finite(values)
            values[place] = 0
    assert is_finite(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 700, 96)], ids=["few", "many"])
def test_whatever_is_no_number_is_found_and_nothing_else(dtype, shape):
    info = torch.finfo(dtype)
    values = (torch.randn(shape) * (info.max / 8)).to(dtype)
    values[0, 0, :4] = torch.tensor([info.max, info.min, info.tiny, -0.0], dtype=dtype)
    assert is_finite(values)
    assert is_finite(values.transpose(1, 2))
    for value in (math.nan, -math.nan, math.inf, -math.inf):
        values[0, -1, 7] = value
        assert not is_finite(values)
        assert not is_finite(values[..., 7])
        assert is_finite(values[..., :7])


def test_only_what_was_sent_is_put_down_to_the_sender():
    failure = Failure(SessionId("s"), 4, HiddenStatesError("x"))
    assert str(blamed(failure, "worker den-pc").error) == "worker den-pc sent x"
    other = Failure(SessionId("s"), 4, BusyError("x"))
    assert blamed(other, "worker den-pc") is other


def envelope(hidden):
    return Envelope("r", 1, 0, 1, Frame(SessionId("s"), 0, 0, 0, (1, 2, 3), LayerOutput((hidden,), bare=True)))


def scores(*values):
    return Scores("r", 0, Logits(SessionId("s"), 0, torch.tensor(values)))


def test_what_comes_back_to_the_coordinator_is_looked_at():
    for fine in (envelope(torch.zeros(1, 3, 4)), envelope(torch.zeros(3, dtype=torch.int64)), scores(1.0, -math.inf, 3.0)):
        assert checked(fine, "den-pc") is fine
    for odd in (envelope(spoilt(math.nan)), scores(1.0, math.nan, 3.0), scores()):
        with pytest.raises(MeshError, match=r"worker den-pc sent .*not numbers"):
            checked(odd, "den-pc")
