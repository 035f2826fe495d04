import os
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.generation import Limits
from layermesh.coordinator.journal import Beginning, Journal, OptionalJournal, read_journal
from layermesh.coordinator.sampling import SamplingParams
from layermesh.shared.errors import DiskFullError, ResourceError, UsageError

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


def test_an_answer_can_do_without_its_journal(tmp_path):
    (tmp_path / "a file").touch()
    lost = []
    with OptionalJournal(tmp_path / "a file" / "a.journal", lost.append) as journal:
        journal.begin(BEGINNING)
        journal.add(3)
        journal.finish()
    assert [type(error) for error in lost] == [ResourceError]
    assert "LAYERMESH_HOME" in str(lost[0])
    with pytest.raises(ResourceError, match="LAYERMESH_HOME"):
        OptionalJournal(tmp_path / "a file" / "a.journal")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_where_the_disk_fills_up_nothing_more_is_written(tmp_path):
    path, lost = tmp_path / "a.journal", []
    path.symlink_to("/dev/full")
    with OptionalJournal(path, lost.append) as journal:
        journal.begin(BEGINNING)
        assert not path.is_symlink()  # half a beginning is nothing to go on from
        for token in range(3):
            journal.add(token)
        journal.finish()
    assert [type(error) for error in lost] == [DiskFullError]


def test_what_was_written_before_the_disk_filled_up_stays_until_the_answer_is_whole(tmp_path):
    path, lost = tmp_path / "a.journal", []
    with OptionalJournal(path, lost.append) as journal:
        journal.begin(BEGINNING)
        journal.add(1)
        written = read_journal(path)
        os.close(journal._journal._file)  # from now on it cannot be written
        for token in (2, 3):
            journal.add(token)
        assert len(lost) == 1
        assert read_journal(path) == written == (BEGINNING, [1])
        journal._journal._file = -1
        journal.finish()
    assert not path.exists()
