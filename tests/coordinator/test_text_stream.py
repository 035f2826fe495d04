from functools import cache
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, tiny_tokenizer

from layermesh.coordinator.text_stream import TextStream
from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.shared.errors import UsageError

TEXT = st.one_of(
    st.text(),
    st.text(alphabet=" .,'abthe\n你ü🙂\ufffd▁#", max_size=60),
    st.lists(st.sampled_from(["<think>", "</s>", " ", "  ", "the", "don't", " n't", "👩‍👩‍👧", "世界", "\ufffd"])).map("".join),
)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return tiny_tokenizer(kind)


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*map(stream.push, ids), stream.finish()]


class Letters:
    """A tokenizer whose tokens are characters."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))

    def is_special(self, token_id: int) -> bool:
        return token_id < 0


LETTERS: Any = Letters()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=300)
@given(text=TEXT)
@example(text=" leading, and  two")
@example(text="</s></s></s> after special tokens")
@example(text="\ufffd" * 40)
def test_equals_decoding_all_ids_at_once(kind: str, text: str) -> None:
    assume(kind != "byte-fallback" or "\ufffd" * 6 not in text)  # see TextStream
    ids, stream = tokenizer(kind).encode_text(text), TextStream(tokenizer(kind))
    assert "".join(pieces(stream, ids)) == tokenizer(kind).decode(ids) == stream.text
    assert not stream.stopped


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_ids_end_in_some_text_without_error(kind: str, data: st.DataObject) -> None:
    size = len(tokenizer(kind)._tokenizer)
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=60))
    stream = TextStream(tokenizer(kind))
    given_out = pieces(stream, ids)
    assert "".join(given_out) == stream.text
    if kind != "byte-fallback":  # which writes a whole run of bytes differently once one of them is wrong
        assert stream.text == tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_never_half_a_character(kind: str) -> None:
    ids = tokenizer(kind).encode_text("🤖🤗")
    assert len(ids) >= 4
    given_out = pieces(TextStream(tokenizer(kind)), ids)
    assert [piece for piece in given_out if piece] == ["🤖", "🤗"]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    ids = tokenizer("byte-level").encode_text("The quick brown fox")
    assert all(pieces(TextStream(tokenizer("byte-level")), ids)[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_costs_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_decoded, decode = [], Tokenizer.decode

    def counted(self: Tokenizer, token_ids: list[int]) -> str:
        num_decoded.append(len(token_ids))
        return decode(self, token_ids)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    stream = TextStream(tokenizer(kind))
    ids = tokenizer(kind).encode_text("the lazy 🙂 dog, " * 200)
    pieces(stream, ids)
    assert max(num_decoded) <= 32
    assert sum(num_decoded) <= 6 * len(ids)


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    token = tokenizer("byte-level").token_id("Ł")  # a byte in the middle of a character, as byte-level BPE writes it
    assert token is not None
    stream = TextStream(tokenizer("byte-level"))
    assert "".join(pieces(stream, [token] * 100)) == "\ufffd" * 100


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        pytest.param("hello END more", ["END"], "hello ", id="stops"),
        pytest.param("hello EN", ["END"], "hello EN", id="only-the-beginning"),
        pytest.param("EEND", ["END"], "E", id="begins-twice"),
        pytest.param("aabaaab!", ["aaab"], "aab", id="overlapping-itself"),
        pytest.param("abc", ["abc", "b"], "a", id="the-first-to-be-complete"),
        pytest.param("xabc", ["bc", "abc"], "x", id="the-longer-of-two"),
        pytest.param("END", ["END"], "", id="at-once"),
        pytest.param("hello", [], "hello", id="none"),
        pytest.param("a.b", ".", "a", id="a-bare-string"),
    ],
)
def test_stop_strings(text: str, stop: list[str], expected: str) -> None:
    stream = TextStream(LETTERS, stop)
    assert "".join(pieces(stream, [*map(ord, text)])) == expected == stream.text
    assert stream.stopped == (expected != text)
    assert stream.push(ord("x")) == stream.finish() == "" or not stream.stopped


@settings(deadline=None)
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_stop_string_is_ever_given_out(text: str, stop: list[str]) -> None:
    stream = TextStream(LETTERS, stop)
    given_out = "".join(pieces(stream, [*map(ord, text)]))
    assert text.startswith(given_out)
    assert not any(string in given_out for string in stop)
    assert stream.stopped == any(string in text for string in stop)
    assert stream.stopped or given_out == text


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=TEXT, stop=st.lists(st.text(" the.你", min_size=1, max_size=3), max_size=2))
def test_stop_strings_do_not_depend_on_the_tokens(kind: str, text: str, stop: list[str]) -> None:
    assume(kind != "byte-fallback" or "\ufffd" * 6 not in text)
    ids, stream, letters = (
        tokenizer(kind).encode_text(text),
        TextStream(tokenizer(kind), stop),
        TextStream(LETTERS, stop),
    )
    pieces(stream, ids)
    pieces(letters, [*map(ord, tokenizer(kind).decode(ids))])
    assert (stream.text, stream.stopped) == (letters.text, letters.stopped)


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None)
    assert pieces(stream, [1, 2, 3]) == [""] * 4
    assert stream.text == ""


@pytest.mark.parametrize(
    ("tokens", "stop"), [(LETTERS, [""]), (LETTERS, ""), (None, ["x"])], ids=["empty", "empty-bare", "no-tokenizer"]
)
def test_stop_strings_that_could_never_be_found_are_refused(tokens: Any, stop: list[str]) -> None:
    with pytest.raises(UsageError, match="stop string"):
        TextStream(tokens, stop)
