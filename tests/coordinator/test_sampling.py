import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from layermesh.coordinator.sampling import Sampler, SamplingParams
from layermesh.shared.errors import ModelError
from tests.coordinator.sampling_models import continue_prompt, tiny_llama

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 7}
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40)


def params(**changed: Any) -> SamplingParams:
    return SamplingParams(**{**OFF, **changed})


def sample(logits: list[float], **changed: Any) -> int:
    return Sampler(params(**changed), []).sample(torch.tensor(logits))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", 1e-30),
        ("top_k", -1), ("top_k", 1.5), ("top_p", 1.1), ("top_p", -0.1), ("top_p", math.nan), ("min_p", 2.0),
        ("repetition_penalty", 0.0), ("repetition_penalty", math.nan), ("seed", -1), ("seed", 2**63), ("seed", 0.5),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        params(**{field: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        pytest.param({}, {}, {"temperature": 0}, id="silent-is-greedy"),
        pytest.param({"do_sample": False, "temperature": 0.6}, {}, {"temperature": 0}, id="not-sampling-is-greedy"),
        pytest.param({"do_sample": True}, {}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}, id="sampling"),
        pytest.param({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {},
                     {"temperature": 0.6, "top_p": 0.9, "top_k": 20}, id="the-models-own"),
        pytest.param({"do_sample": True, "temperature": None, "top_k": None}, {},
                     {"temperature": 1.0, "top_k": 50}, id="null-is-absent"),
        pytest.param({}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 50}, id="caller-samples"),
        pytest.param({"do_sample": True, "temperature": 0.6}, {"temperature": 0},
                     {"temperature": 0}, id="caller-greedy"),
        pytest.param({"top_k": 20}, {"top_k": 0, "min_p": 0.1}, {"top_k": 0, "min_p": 0.1}, id="caller-wins"),
        pytest.param({"repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.1}, id="penalty-when-greedy"),
        pytest.param({}, {"seed": 0}, {"seed": 0}, id="seed-zero"),
    ],
)  # fmt: skip
def test_resolve(config: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]) -> None:
    resolved = SamplingParams.resolve(config, **given)
    assert {name: getattr(resolved, name) for name in expected} == expected


@pytest.mark.parametrize("value", ["0.5", True, [1.0]], ids=repr)
def test_resolve_refuses_what_is_not_a_number(value: object) -> None:
    with pytest.raises(ValueError, match="top_p must be a number"):
        SamplingParams.resolve({"top_p": value})


def test_a_fresh_seed_is_drawn_and_can_be_written_as_json() -> None:
    seeds = {SamplingParams.resolve({}).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(json.loads(json.dumps(seed)) == seed < 2**53 for seed in seeds)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 2**32))
def test_top_k_of_one_is_greedy(logits: list[float], seed: int) -> None:
    likeliest = max(logits)
    assert logits[sample(logits, temperature=0)] == pytest.approx(likeliest)
    if logits.count(likeliest) == 1:
        assert sample(logits, top_k=1, seed=seed) == sample(logits, temperature=0)


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1), st.integers(0, 2**32))
def test_top_p_stays_inside_the_nucleus(logits: list[float], top_p: float, seed: int) -> None:
    probs = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    token = sample(logits, top_p=top_p, seed=seed)
    likelier = probs[probs > probs[token]].sum()
    assert likelier <= top_p + 1e-5


@settings(deadline=None)
@given(LOGITS, st.floats(0, 1), st.integers(0, 2**32))
def test_min_p_keeps_only_tokens_likely_enough(logits: list[float], min_p: float, seed: int) -> None:
    probs = torch.tensor(logits, dtype=torch.float64).softmax(-1)
    assert probs[sample(logits, min_p=min_p, seed=seed)] >= min_p * probs.max() * (1 - 1e-5)


@settings(deadline=None)
@given(LOGITS, st.integers(1, 50), st.integers(0, 2**32))
def test_top_k_keeps_only_the_k_likeliest(logits: list[float], top_k: int, seed: int) -> None:
    token = sample(logits, top_k=top_k, seed=seed)
    assert sum(logit > logits[token] for logit in logits) < top_k


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_frequent_as_their_probabilities(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf])
    sampler, num_samples = Sampler(params(temperature=temperature), []), 4000
    counts = torch.bincount(torch.tensor([sampler.sample(logits) for _ in range(num_samples)]), minlength=5)
    expected = (logits / temperature).softmax(-1)
    assert torch.allclose(counts / num_samples, expected, atol=0.04)
    assert counts[4] == 0


def test_same_seed_same_tokens_whatever_else_draws() -> None:
    logits = torch.randn(30, 100, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = [*map(Sampler(params(), []).sample, logits)]
    torch.manual_seed(2)
    assert [*map(Sampler(params(), []).sample, logits)] == first
    assert [*map(Sampler(params(seed=8), []).sample, logits)] != first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_float_type_and_the_logits_stay_as_they_were(dtype: torch.dtype) -> None:
    logits = torch.arange(8, dtype=dtype)
    assert Sampler(params(temperature=0, repetition_penalty=100.0), [7, 6]).sample(logits) == 5
    assert torch.equal(logits, torch.arange(8, dtype=dtype))


@pytest.mark.parametrize(
    "logits",
    [[0.0, math.nan], [math.nan, math.nan], [1.0, math.inf], [-math.inf, -math.inf]],
    ids=["a-nan", "all-nan", "an-infinity", "nothing-possible"],
)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_broken_logits_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(ModelError, match=r"not numbers.*--dtype float32"):
        sample(logits, temperature=temperature)


def test_ids_beyond_the_head_take_no_part_in_the_penalty() -> None:
    sampler = Sampler(params(temperature=0, repetition_penalty=2.0), [900, 1])
    assert sampler.sample(torch.tensor([1.0, 1.5, 0.5])) == 0


@pytest.mark.parametrize("penalty", [1.0, 1.3], ids=["plain", "penalty"])
def test_greedy_equals_transformers(model: LlamaForCausalLM, penalty: float) -> None:
    prompt = [1, 2, 3, 3]
    theirs = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4), max_new_tokens=24, do_sample=False,
        repetition_penalty=penalty,
    )  # fmt: skip
    sampler = Sampler(params(temperature=0, repetition_penalty=penalty), prompt)
    assert continue_prompt(model, sampler, prompt, 24) == theirs[0].tolist()


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
    ids=lambda changed: "-".join(changed),
)
@pytest.mark.parametrize("seed", [0, 123, 2**32 - 1])
def test_sampled_tokens_equal_transformers(model: LlamaForCausalLM, changed: dict[str, Any], seed: int) -> None:
    chosen, prompt = params(**changed, seed=seed), [5, 9]
    torch.manual_seed(seed)
    theirs = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 2), max_new_tokens=16, do_sample=True,
        **{name: getattr(chosen, name) for name in OFF if name != "seed"},
    )  # fmt: skip
    assert continue_prompt(model, Sampler(chosen, prompt), prompt, 16) == theirs[0].tolist()


def test_a_token_that_is_overruled_is_the_one_that_counts() -> None:
    sampler = Sampler(params(temperature=0, repetition_penalty=100.0), [])
    assert sampler.sample(torch.tensor([3.0, 2.0, 1.0])) == 0
    sampler.overrule(1)
    assert sampler.sample(torch.tensor([3.0, 4.0, 1.0])) == 0
