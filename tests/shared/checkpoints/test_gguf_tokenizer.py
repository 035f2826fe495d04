"""The tokenizer of a GGUF file begins, ends and cuts texts as the file says; test_gguf_llama_cpp compares with llama.cpp."""

import pytest
from gguf_vocabularies import write_vocabulary
from transformers import AutoTokenizer

from layermesh.shared.checkpoints import open_checkpoint

pytestmark = pytest.mark.usefixtures("unpack_here")


def tokenizer_of(tmp_path, model, **keys):
    checkpoint = open_checkpoint(write_vocabulary(tmp_path / "words.gguf", model, keys), tmp_path / "cache")
    assert checkpoint.tokenizer_error is None
    return AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)


@pytest.mark.parametrize(
    ("model", "keys", "begins", "ends"),
    [
        ("gpt2", {"pre": "llama-bpe"}, True, False),
        ("gpt2", {"pre": "tekken"}, True, False),
        ("gpt2", {"pre": "llama-bpe", "add_bos_token": False}, False, False),
        ("gpt2", {"pre": "qwen2"}, False, False),
        ("gpt2", {"pre": "qwen2", "add_bos_token": True, "add_eos_token": True}, True, True),
        ("llama", {}, True, False),
        ("llama", {"add_bos_token": False, "add_eos_token": True}, False, True),
    ],
    ids=str,
)
def test_texts_begin_and_end_as_the_file_says(tmp_path, model, keys, begins, ends):
    tokenizer = tokenizer_of(tmp_path, model, **keys)
    ids = tokenizer.encode("a")
    assert (ids[0] == tokenizer.bos_token_id, ids[-1] == tokenizer.eos_token_id) == (begins, ends)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["in", "Ġ2024", "!?", "ĠIt", "'s"]),
        ("smollm", ["in", "Ġ", "2", "0", "2", "4", "!?", "ĠIt", "'s"]),
        ("deepseek-v3", ["in", "Ġ", "202", "4", "!?", "ĠIt", "'s"]),
        ("falcon", ["in", "Ġ", "202", "4", "!?", "ĠIt", "'", "s"]),
        ("stablelm2", ["in", "Ġ", "2", "0", "2", "4", "!?", "ĠIt", "'s"]),
    ],
)
def test_texts_are_cut_as_the_file_says(tmp_path, pre, pieces):
    cutter = tokenizer_of(tmp_path, "gpt2", pre=pre).backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in cutter.pre_tokenize_str("in 2024!? It's")] == pieces


@pytest.mark.parametrize(("stated", "first"), [(None, "▁ab"), (True, "▁ab"), (False, "ab")])
def test_texts_have_a_space_in_front_or_not(tmp_path, stated, first):
    tokenizer = tokenizer_of(tmp_path, "llama", **({} if stated is None else {"add_space_prefix": stated}))
    ids = tokenizer.encode("ab", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [first]
    assert tokenizer.decode(ids) == "ab"


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"pre": "telepathy"}, "tokenizer.ggml.pre = 'telepathy'"), ({"add_sep_token": True}, "tokenizer.ggml.add_sep_token")],
    ids=["unknown cuts", "separators"],
)
def test_what_no_tokenizer_does_leaves_a_model_without(tmp_path, keys, named):
    checkpoint = open_checkpoint(write_vocabulary(tmp_path / "words.gguf", "gpt2", keys), tmp_path / "cache")
    assert checkpoint.tokenizer_dir is None
    assert named in str(checkpoint.tokenizer_error)
