from typing import Any

import pytest
from tiny_tokenizers import tiny_tokenizer

from layermesh.coordinator.stop_tokens import stop_token_ids
from layermesh.coordinator.tokenizer import Tokenizer


def named(tokenizer: Tokenizer, *tokens: str) -> set[int | None]:
    return {tokenizer.token_id(token) for token in tokens}


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        pytest.param({}, {}, set(), id="none"),
        pytest.param({"eos_token_id": 2}, {}, {2}, id="one"),
        pytest.param({"eos_token_id": [2, 3]}, {"eos_token_id": 4}, {2, 3, 4}, id="union"),
        pytest.param({"eos_token_id": None}, {"eos_token_id": 0}, {0}, id="zero-is-a-token"),
        pytest.param({}, {"text_config": {"eos_token_id": 5}}, {5}, id="text-part-of-a-larger-model"),
        pytest.param({"eos_token_id": -1}, {"eos_token_id": "</s>", "text_config": None}, set(), id="not-ids"),
        pytest.param({"eos_token_id": [True, 1.5, None, 6]}, {}, {6}, id="not-all-ids"),
    ],
)
def test_without_a_tokenizer(generation_config: dict[str, Any], config: dict[str, Any], expected: set[int]) -> None:
    assert stop_token_ids(generation_config, config, None, chat=True) == expected


@pytest.mark.parametrize(
    ("template", "listed", "chat", "expected"),
    [
        ("...<|im_end|>", None, True, ["</s>", "<|im_end|>"]),
        ("...<|im_end|>", None, False, ["</s>"]),
        ("...<|im_end|>", [0, 1], True, ["</s>"]),
        ("...<|im_end|>", [0], True, ["</s>", "<|im_end|>"]),
        ("...<|eot_id|>", None, True, ["</s>"]),
        ("...", None, True, ["</s>"]),
        (None, None, True, ["</s>"]),
    ],
    ids=["chat", "raw", "several-listed", "one-listed", "not-in-vocabulary", "not-in-template", "no-template"],
)
def test_the_end_of_a_turn_ends_a_chat(template: str | None, listed: list[int] | None, chat: bool, expected: list[str]) -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template=template)
    found = stop_token_ids({"eos_token_id": listed}, {}, tokenizer, chat=chat)
    assert found == named(tokenizer, *expected) | {*(listed or [])}
