import pytest
import torch

from layermesh.shared.frames import Frame, LayerOutput, SessionId


@pytest.mark.parametrize(
    "returned",
    [torch.ones(1, 2, 3), (torch.ones(1, 2, 3),), (torch.ones(1, 2, 3), None, torch.zeros(2))],
    ids=["bare", "tuple", "with attentions"],
)
def test_what_a_layer_returned_is_put_together_again_as_it_was(returned):
    again = LayerOutput.of(returned).returned()
    assert type(again) is type(returned)
    assert again is returned or all(ours is theirs for ours, theirs in zip(again, returned, strict=True))


def test_only_tensors_are_handed_on():
    assert LayerOutput.of([torch.ones(1), object()]).tensors[1] is None
    with pytest.raises(TypeError, match="dict"):
        LayerOutput.of({"hidden": torch.ones(1)})


def test_a_frame_without_tokens_is_refused():
    with pytest.raises(ValueError, match="session one, step 3"):
        Frame(SessionId("one"), 0, 3, 5, ())


@pytest.mark.parametrize("counts", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)], ids=["epoch", "step", "position"])
def test_a_frame_that_counts_below_zero_is_refused(counts):
    with pytest.raises(ValueError, match="count from zero"):
        Frame(SessionId("one"), *counts, (1,))
