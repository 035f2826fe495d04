import json
import warnings
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from layermesh.coordinator.sampling import Sampler, SamplingParams
from layermesh.coordinator.score_settings import check_score_ids, read_score_settings
from layermesh.shared.errors import ModelError
from tests.coordinator.sampling_models import continue_prompt, tiny_llama

PROMPT = [5, 9, 9, 30, 5, 9]
NUM_TOKENS = 14
ENDS = [15, 61]  # the first is in the plain answer, so that keeping it away shows

GREEDY: dict[str, dict[str, Any]] = {
    "suppress_tokens": {"suppress_tokens": [55, 36, 2, 900, -1]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(0, 64, 2))},
    "bad_words_ids": {"bad_words_ids": [[7], [10], [9, 30], [1, 2, 3]]},
    "sequence_bias": {"sequence_bias": [[[40], 3.0], [[40, 41], 9.0], [[12], -2.5]]},
    "forced_eos_token_id": {"forced_eos_token_id": 10},
    "forced_eos_token_id, several": {"forced_eos_token_id": [11, 10]},
    "min_length": {"min_length": len(PROMPT) + 9},
    "min_new_tokens": {"min_new_tokens": 12},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 0.4},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 1.6]},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "watermarking_config": {"watermarking_config": {"bias": 4.0, "context_width": 2}},
    "watermarking_config, selfhash": {"watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash"}},
    "all at once": {
        "suppress_tokens": [55], "bad_words_ids": [[7]], "no_repeat_ngram_size": 3, "repetition_penalty": 1.2,
        "min_new_tokens": 8, "sequence_bias": [[[40], 1.0]], "exponential_decay_length_penalty": [3, 1.2],
        "forced_eos_token_id": 10, "renormalize_logits": True, "encoder_repetition_penalty": 1.3,
        "begin_suppress_tokens": [1, 2], "watermarking_config": {"bias": 1.0}, "min_length": 9,
        "encoder_no_repeat_ngram_size": 3,
    },
    "nothing": {
        "suppress_tokens": None, "begin_suppress_tokens": [], "bad_words_ids": None, "min_length": -1,
        "renormalize_logits": False,
    },
}  # fmt: skip
SAMPLED: dict[str, dict[str, Any]] = {
    "typical_p": {"typical_p": 0.6},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "top_h": {"top_h": 0.4},
    "all at once": {
        "temperature": 1.4, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 0.001,
        "eta_cutoff": 0.001, "top_h": 0.9, **GREEDY["all at once"],
    },
}  # fmt: skip


def theirs(config: dict[str, Any], prompt: list[int], seed: int = 0) -> list[int]:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asked = GenerationConfig(**config, max_new_tokens=NUM_TOKENS, eos_token_id=ENDS, pad_token_id=0)
        ids = torch.tensor([prompt])
        return tiny_llama().generate(ids, attention_mask=torch.ones_like(ids), generation_config=asked)[0].tolist()


def ours(config: dict[str, Any], prompt: list[int], seed: int = 0) -> list[int]:
    params = SamplingParams.resolve(json.loads(json.dumps(config)), seed=seed)
    sampler = Sampler(params, prompt, max_new_tokens=NUM_TOKENS, stop_ids=ENDS)
    return continue_prompt(tiny_llama(), sampler, prompt, NUM_TOKENS, tuple(ENDS))


@pytest.mark.parametrize("config", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:2]], ids=["long", "short"])
def test_greedy_tokens_are_those_of_transformers(config: dict[str, Any], prompt: list[int]) -> None:
    assert ours(config, prompt) == theirs(config, prompt)


@pytest.mark.parametrize("config", [*SAMPLED.values(), GREEDY["all at once"]], ids=[*SAMPLED, "of greedy ones"])
@pytest.mark.parametrize("seed", [0, 7, 2**31])
def test_sampled_tokens_are_those_of_transformers(config: dict[str, Any], seed: int) -> None:
    asked = {"do_sample": True, **config}
    assert ours(asked, PROMPT, seed) == theirs(asked, PROMPT, seed)


@pytest.mark.parametrize(
    "config",
    [{"forced_bos_token_id": 33}, {"forced_bos_token_id": 33, "begin_suppress_tokens": list(range(60))}],
    ids=["forced", "then suppressed"],
)
def test_after_a_prompt_of_one_token_the_first_is_forced(config: dict[str, Any]) -> None:
    assert ours(config, [5]) == theirs(config, [5])
    assert ours(config, [5])[1] == 33


@pytest.mark.parametrize(
    "name", [name for name in GREEDY if name not in ("nothing", "remove_invalid_values", "renormalize_logits")]
)
def test_each_of_them_changes_the_answer(name: str) -> None:
    assert ours(GREEDY[name], PROMPT) != ours({}, PROMPT) or ours(GREEDY[name], PROMPT[:2]) != ours({}, PROMPT[:2])


def test_settings_of_sampling_leave_a_greedy_answer_alone() -> None:
    everything = {name: value for config in SAMPLED.values() for name, value in config.items() if name in SAMPLED}
    assert ours(everything, PROMPT) == ours({}, PROMPT) == theirs(everything, PROMPT)


@pytest.mark.parametrize("logits", [[float("nan"), 1.0, 2.0], [float("inf"), 1.0, 0.0]], ids=["a NaN", "an infinity"])
def test_invalid_values_are_removed_where_the_file_says_so(logits: list[float]) -> None:
    params = SamplingParams.resolve({"remove_invalid_values": True})
    assert Sampler(params, [1]).sample(torch.tensor(logits)) == (2 if logits[0] != logits[0] else 0)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_where_nothing_is_left_to_choose_the_file_is_named(sampled: bool) -> None:
    params = SamplingParams.resolve({"suppress_tokens": [0, 1], "do_sample": sampled})
    with pytest.raises(ModelError, match="json forbids"):
        Sampler(params, [1]).sample(torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", 5), ("suppress_tokens", ["5"]), ("suppress_tokens", [True]),
        ("suppress_tokens", [0, False]), ("suppress_tokens", [1.5]),
        ("begin_suppress_tokens", {}), ("bad_words_ids", [5]), ("bad_words_ids", [[]]), ("bad_words_ids", [[-1]]),
        ("sequence_bias", {"5": 1.0}), ("sequence_bias", [[5, 1.0]]), ("sequence_bias", [[[5], "1"]]),
        ("forced_bos_token_id", [5]), ("forced_bos_token_id", -1), ("forced_eos_token_id", "5"), ("min_length", 1.5),
        ("min_new_tokens", 1.5), ("no_repeat_ngram_size", True), ("encoder_repetition_penalty", 0), ("typical_p", 0),
        ("typical_p", 1.5), ("top_h", 0), ("eta_cutoff", "x"), ("exponential_decay_length_penalty", 1.5),
        ("watermarking_config", {"colour": 1}), ("watermarking_config", {"seeding_scheme": "x"}), ("renormalize_logits", 1),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        read_score_settings({name: value})


@pytest.mark.parametrize(
    "config",
    [
        {"bad_words_ids": [[1], [2, 64]]},
        {"sequence_bias": [[[64], 1.0]]},
        {"forced_bos_token_id": 64},
        {"forced_eos_token_id": [1, 64]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_an_id_that_the_model_has_not_is_named(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(config))} has token id 64, .* 0 to 63"):
        check_score_ids(config, 64)
    check_score_ids(config, 65)


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(ValueError, match="bad_words_ids") as caught:
        read_score_settings({"bad_words_ids": ["x" * 1000] * 1000})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "config",
    [{"bad_words_ids": [[33]]}, {"exponential_decay_length_penalty": [0, 1.7]}],
    ids=["bad words", "length penalty"],
)
def test_the_ends_that_count_are_those_of_the_model_s_file(config: dict[str, Any]) -> None:
    """Other ids that end an answer, of the tokenizer or a template, are exempt from nothing and raised by nothing."""
    params = SamplingParams.resolve({**config, "eos_token_id": ENDS}, seed=0)
    more = [*ENDS, 33]
    sampler = Sampler(params, PROMPT, max_new_tokens=NUM_TOKENS, stop_ids=more)
    assert continue_prompt(tiny_llama(), sampler, PROMPT, NUM_TOKENS, tuple(ENDS)) == theirs(config, PROMPT)


def test_a_length_that_a_prompt_does_not_have_costs_nothing() -> None:
    assert ours({"encoder_no_repeat_ngram_size": 2**40}, PROMPT) == ours({}, PROMPT)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_bias_beyond_all_numbers_chooses_its_token(sampled: bool) -> None:
    config = {"sequence_bias": [[[5], 1e300]], "do_sample": sampled}
    assert set(ours(config, PROMPT)[len(PROMPT) :]) == {5}
