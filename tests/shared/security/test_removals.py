import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import packb

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import Authority, utc_now
from layermesh.shared.security.nodes import new_node_id
from layermesh.shared.security.removals import MOST_NODES, KeptRemovals, Removals, SignedRemovals

AUTHORITY = Authority.make(utc_now())
FIRST, SECOND = new_node_id(), new_node_id()
LIST = Removals().with_node(FIRST)


def kept(tmp_path, authority=AUTHORITY):
    return KeptRemovals(tmp_path / "keys" / "removed", lambda: authority and authority.certificate)


def test_a_list_is_read_by_those_who_know_the_authority():
    signed = SignedRemovals.make(LIST, AUTHORITY)
    assert SignedRemovals.parse(signed.to_bytes()).read(AUTHORITY.certificate) == LIST
    with pytest.raises(AuthenticationError, match="did not sign"):
        signed.read(Authority.make(utc_now()).certificate)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_list_that_was_changed_is_refused(place, change):
    body = bytearray(SignedRemovals.make(LIST, AUTHORITY).body)
    body[place % len(body)] ^= change
    with pytest.raises(AuthenticationError):
        SignedRemovals(bytes(body), SignedRemovals.make(LIST, AUTHORITY).signature).read(AUTHORITY.certificate)


@pytest.mark.parametrize(
    "body",
    [["something else", 1, []], ["layermesh removed nodes 1", -1, []], ["layermesh removed nodes 1", 1, ["x"]], [1], {}],
    ids=repr,
)
def test_something_else_that_the_authority_signed_is_no_list(body):
    data = packb(body)
    with pytest.raises(AuthenticationError, match="makes no sense"):
        SignedRemovals(data, AUTHORITY.sign(data)).read(AUTHORITY.certificate)


def test_the_newest_list_holds(tmp_path):
    known, newer = kept(tmp_path), LIST.with_node(SECOND)
    assert known.current() == Removals()
    assert known.keep(SignedRemovals.make(newer, AUTHORITY))
    assert not known.keep(SignedRemovals.make(LIST, AUTHORITY))
    assert not known.keep(SignedRemovals.make(Removals(2), AUTHORITY))
    assert known.current() == kept(tmp_path).current() == newer


def test_what_another_process_removes_is_noticed(tmp_path):
    known = kept(tmp_path)
    assert known.current().nodes == frozenset()
    kept(tmp_path).keep(SignedRemovals.make(LIST, AUTHORITY))
    assert known.current().nodes == {FIRST}


def test_a_forged_list_is_not_kept(tmp_path):
    with pytest.raises(AuthenticationError):
        kept(tmp_path).keep(SignedRemovals.make(LIST, Authority.make(utc_now())))
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("data", [b"", b"x", packb([b"", b""]), packb([1, 2, 3])], ids=repr)
def test_nobody_comes_back_by_a_damaged_file(tmp_path, data):
    known = kept(tmp_path)
    known.keep(SignedRemovals.make(LIST, AUTHORITY))
    known.path.write_bytes(data)
    with pytest.raises(AuthenticationError):
        kept(tmp_path).current()


def test_a_list_has_an_end():
    with pytest.raises(ValueError, match="can be remembered"):
        SignedRemovals.make(Removals(1, frozenset(new_node_id() for _ in range(MOST_NODES + 1))), AUTHORITY)
    full = Removals(1, frozenset(new_node_id() for _ in range(MOST_NODES)))
    assert SignedRemovals.make(full, AUTHORITY).read(AUTHORITY.certificate) == full
