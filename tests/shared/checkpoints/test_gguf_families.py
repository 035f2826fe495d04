"""Every family's GGUF file computes what plain transformers computes with the model that the file was made from."""

import pytest
import torch
from gguf_parameters import PROMPT, logits_of, made_model
from gguf_twin_models import TWINS


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_logits_equal_those_of_the_model_that_was_converted(tmp_path, twin):
    original = twin.model()
    made = made_model(twin.write(tmp_path / "twin.gguf", original), tmp_path / "cache")
    for length in (len(PROMPT), 20):  # beyond and within the original length of what was lengthened
        expected = logits_of(original, length)
        assert expected.std() > 0.1
        torch.testing.assert_close(logits_of(made, length), expected, atol=2e-4, rtol=1e-3)
