import json
import os

import pytest

from layermesh.coordinator.tokenizer_check import MAX_STEPS, check_steps, check_tokenizer_file


def replace(find, put, kind="String"):
    return {"type": "Replace", "pattern": {kind: find}, "content": put}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


USUAL = {
    "nothing": {},
    "null": {"normalizer": None, "padding": None},
    "llama": {"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))},
    "albert": {"normalizer": sequence(replace("``", '"'), {"type": "NFKD"}, replace(" {2,}", " ", "Regex"))},
    "t5": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 320_000}},
    "byte fallback": {"decoder": {"type": "Sequence", "decoders": [replace("▁", " "), {"type": "ByteFallback"}]}},
    "padded to eight": {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 8}},
    "padded to 512": {"padding": {"strategy": {"Fixed": 512}}},
    "marks of a few letters": {"normalizer": sequence(*[replace(mark, f"<{mark}>") for mark in "abc"])},
}  # fmt: skip
BOMBS = {
    "doubled eleven times": {"normalizer": sequence(*[replace("x", "xx")] * 11)},
    "in nests": {"normalizer": sequence(sequence(replace("x", "x" * 40)), sequence(replace("x", "x" * 40)))},
    "in the decoder": {"decoder": {"type": "Sequence", "decoders": [replace("x", "x" * 2000)]}},
    "by a pattern": {"normalizer": replace(".", "x" * 2000, "Regex")},
    "where nothing is": {"normalizer": replace("", "x" * 2000)},
    "many steps": {"normalizer": sequence(*[{"type": "NFC"}] * (MAX_STEPS + 1))},
    "a table without end": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * (5 << 20)}},
    "padded": {"padding": {"strategy": {"Fixed": 10**12}}},
    "padded to a multiple": {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 10**12}},
}


@pytest.mark.parametrize("tokenizer", USUAL.values(), ids=USUAL)
def test_what_tokenizers_do_is_let_through(tokenizer):
    check_steps(tokenizer)


@pytest.mark.parametrize("tokenizer", BOMBS.values(), ids=BOMBS)
def test_what_blows_a_text_up_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="it"):
        check_steps(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}, **tokenizer}))
    with pytest.raises(ValueError, match="it"):
        check_tokenizer_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"normalizer": 7, "padding": [1], "decoder": {"type": "Sequence"}}'])
def test_what_is_no_tokenizer_is_left_to_the_library(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    check_tokenizer_file(tmp_path / "tokenizer.json")


def test_a_file_that_is_not_there_is_fine_and_a_pipe_is_not(tmp_path):
    check_tokenizer_file(tmp_path / "tokenizer.json")
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="no plain file"):
        check_tokenizer_file(tmp_path / "tokenizer.json")


def test_brackets_without_end_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        check_tokenizer_file(tmp_path / "tokenizer.json")
