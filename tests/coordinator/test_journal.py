import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.generation import Limits
from layermesh.coordinator.journal import Beginning, Journal, read_journal
from layermesh.coordinator.sampling import SamplingParams
from layermesh.shared.errors import UsageError

BEGINNING = Beginning(
    "model",
    {"dtype": None, "fast_path": True},
    (1, 2, 3),
    Limits(7, frozenset({2})),
    SamplingParams(0.5, 40, 0.9, 0.0, 1.1, 12345, {"suppress_tokens": [3, 4], "sequence_bias": [[[1, 2], -1.5]]}),
    ("STOP",),
    16,
)


def written(path, *tokens):
    with Journal(path) as journal:
        journal.begin(BEGINNING)
        for token in tokens:
            journal.add(token)
    return path


@given(st.lists(st.integers(0, 2**31), max_size=20), st.data())
def test_what_was_written_is_read_whatever_is_cut_off(tmp_path_factory, tokens, data):
    path = written(tmp_path_factory.mktemp("journal") / "a.journal", *tokens)
    assert read_journal(path) == (BEGINNING, tokens)
    whole = path.read_bytes()
    shortest = len(msgpack.packb(BEGINNING.to_dict()))
    path.write_bytes(whole[: data.draw(st.integers(shortest, len(whole)))])
    beginning, left = read_journal(path)
    assert beginning == BEGINNING
    assert left == tokens[: len(left)]
    with Journal(path) as journal:
        journal.add(9)
    assert read_journal(path) == (BEGINNING, [*left, 9])


def test_nobody_else_can_read_it_and_a_whole_answer_leaves_none(tmp_path):
    path = written(tmp_path / "journals" / "a.journal")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    Journal(path).finish()
    assert not path.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(3),
        msgpack.packb({}),
        msgpack.packb(BEGINNING.to_dict() | {"version": 2}),
        msgpack.packb(BEGINNING.to_dict() | {"params": {"temperature": "hot"}}),
        msgpack.packb(BEGINNING.to_dict() | {"prompt_ids": [-1]}),
        msgpack.packb(BEGINNING.to_dict()) + msgpack.packb("token"),
        bytes(17 << 20),
    ],
    ids=["empty", "garbage", "number", "no beginning", "version", "params", "prompt", "no token", "huge"],
)
def test_what_is_no_journal_is_refused(tmp_path, data):
    path = tmp_path / "a.journal"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="is not what an answer can go on from"):
        read_journal(path)
