import pytest

from tests.architectures.exceptions import EXCEPTIONS
from tests.architectures.table import check

KINDS = {
    "llama": "dense",
    "gpt2": "learned positions, conv1d weights",
    "bart": "the decoder of an encoder-decoder",
    "bloom": "ALiBi, layers that return tuples",
    "mixtral": "mixture of experts, fused from one tensor per expert",
    "deepseek_v3": "multi-head latent attention",
    "gpt_oss": "sliding windows, attention sinks, experts",
    "gemma3_text": "sliding and full attention, scaled embeddings",
    "gemma4_text": "per-layer embeddings",
    "falcon_mamba": "state space",
    "qwen3_next": "linear attention",
    "zamba2": "layers that share a block",
    "minimax": "a cache class of its own",
    "hrm_text": "layers that run several times",
}


@pytest.mark.parametrize("model_type", KINDS, ids=str)
def test_streamed_and_divided_architectures_equal_transformers(model_type):
    results = check(model_type)
    expected = EXCEPTIONS.get(model_type, {})
    assert {way: found for way, found in results.items() if found and way not in expected} == {}
    assert [way for way in expected if not results[way]] == [], "equal now: take it off the list of exceptions"
