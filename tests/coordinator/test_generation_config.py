import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from layermesh.coordinator import generation_config
from layermesh.coordinator.generation_config import AnswerLimits, read_generation_config, unapplied_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4), ("num_beam_groups", 2), ("penalty_alpha", 0.6), ("dola_layers", "high"), ("guidance_scale", 1.5),
        ("token_healing", True), ("max_time", 2.0), ("num_return_sequences", 3), ("force_words_ids", [[5]]),
        ("cache_implementation", "quantized"), ("forced_decoder_ids", [[1, 5]]), ("is_assistant", True), ("chat_format", "raw"),
    ],
)  # fmt: skip
def test_what_is_not_applied_is_named(name: str, value: object) -> None:
    (line,) = unapplied_settings({name: value, "temperature": 0.5})
    assert name in line
    assert "not applied: " in line


@pytest.mark.parametrize(
    "config",
    [
        {}, {"num_beams": 1, "guidance_scale": 1.0, "num_return_sequences": 1, "max_time": None, "token_healing": False},
        {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "transformers_version": "4.51.0", "do_sample": True},
        {"cache_implementation": "hybrid", "_from_model_config": True, "use_cache": False, "suppress_tokens": [5]},
        {"num_assistant_tokens": 5, "length_penalty": 2.0, "early_stopping": True, "unknown": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_nothing_is_not_mentioned(config: dict[str, Any]) -> None:
    assert unapplied_settings(config) == []


def test_every_setting_of_transformers_is_known() -> None:
    known = generation_config._APPLIED | generation_config._HARMLESS | generation_config._NOT_APPLIED.keys()
    assert {name for name in GenerationConfig().to_dict() if not name.startswith("_")} <= known


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, AnswerLimits(None, None, ())),
        ({"max_new_tokens": 7, "max_length": 30, "stop_strings": "a"}, AnswerLimits(7, 30, ("a",))),
        ({"stop_strings": ["a", "b"], "eos_token_id": [1, -1]}, AnswerLimits(None, None, ("a", "b"))),
        ({"stop_strings": None, "max_length": None, "eos_token_id": None}, AnswerLimits(None, None, ())),
    ],
    ids=str,
)
def test_limits(config: dict[str, Any], expected: AnswerLimits) -> None:
    assert AnswerLimits.of(config) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("max_new_tokens", "7"), ("max_length", 7.5), ("stop_strings", [""]), ("stop_strings", 5),
     ("stop_strings", [5]), ("eos_token_id", "2"), ("eos_token_id", [2, [3]]), ("eos_token_id", True)],
)  # fmt: skip
def test_limits_of_another_kind_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        AnswerLimits.of({name: value})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"top_k": 5}, "config.json": {"top_k": 9}}, {"top_k": 5}),
        ({"config.json": {"top_k": 9, "hidden_size": 8, "eos_token_id": 2, "num_beams": 4}}, {"top_k": 9, "num_beams": 4}),
        (
            {"config.json": {"text_config": {"suppress_tokens": [5], "top_k": 3}, "top_k": 9}},
            {"suppress_tokens": [5], "top_k": 9},
        ),
        ({"config.json": {"suppress_tokens": None}}, {}),
    ],
    ids=["its own file", "an older model", "of its text part", "null"],
)
def test_settings_stand_in_one_of_two_files(tmp_path: Path, files: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_generation_config(tmp_path, files["config.json"]) == expected
