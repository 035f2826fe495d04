import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.invitation import Invitation, hash_secret
from layermesh.shared.security.invitations import MOST_INVITATIONS, Invitations

HASH = bytes(range(32))
SECRET = bytes(range(16))
TOKEN = "lm1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq-aaaqeayeaudaocajbifqydiob4"


def test_the_form_of_an_invitation_stays():
    assert Invitation(HASH, SECRET).token == TOKEN
    assert Invitation.parse(TOKEN) == Invitation.parse(f"  {TOKEN.upper()}\n") == Invitation(HASH, SECRET)


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_what_was_written_is_read(authority, secret):
    assert Invitation.parse(Invitation(authority, secret).token) == Invitation(authority, secret)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lm1-",
        TOKEN[:-1],
        TOKEN + "a",
        TOKEN.replace("lm1", "lm2"),
        TOKEN.replace("-", ""),
        TOKEN[:-1] + "5",
        TOKEN + "\0",
        "é" * 82,
    ],
    ids=repr,
)
def test_what_is_no_invitation_is_refused_and_not_repeated(text):
    with pytest.raises(AuthenticationError, match="that is no invitation") as refused:
        Invitation.parse(text)
    assert refused.value.exit_code == 5
    assert len(text) < 5 or text not in str(refused.value)


def test_an_invitation_does_not_show_its_secret():
    assert SECRET.hex() not in repr(Invitation(HASH, SECRET))
    assert repr(SECRET) not in repr(Invitation(HASH, SECRET))
    assert len({Invitation.make(HASH).secret for _ in range(100)}) == 100


@pytest.fixture
def invitations(tmp_path):
    return Invitations(tmp_path / "mesh" / "invitations.msgpack")


def test_an_invitation_works_once(invitations):
    invitations.add([hash_secret(SECRET)], ends=900.0, now=0.0)
    invitations.redeem(SECRET, now=899.0)
    with pytest.raises(AuthenticationError, match="was used already"):
        invitations.redeem(SECRET, now=899.0)


def test_an_invitation_expires(invitations):
    invitations.add([hash_secret(SECRET)], ends=900.0, now=0.0)
    with pytest.raises(AuthenticationError, match="has expired"):
        invitations.redeem(SECRET, now=900.0)


def test_a_secret_that_nobody_made_is_not_known(invitations):
    invitations.add([hash_secret(SECRET)], ends=900.0, now=0.0)
    with pytest.raises(AuthenticationError, match="not known here"):
        invitations.redeem(bytes(16), now=1.0)
    invitations.redeem(SECRET, now=1.0)


def test_what_is_withdrawn_works_no_more_and_what_was_used_stays_so(invitations):
    other = bytes(16)
    invitations.add([hash_secret(SECRET), hash_secret(other)], ends=900.0, now=0.0)
    invitations.redeem(SECRET, now=1.0)
    invitations.withdraw([hash_secret(SECRET), hash_secret(other)])
    with pytest.raises(AuthenticationError, match="was used already"):
        invitations.redeem(SECRET, now=1.0)
    with pytest.raises(AuthenticationError, match="not known here"):
        invitations.redeem(other, now=1.0)


def test_the_secret_itself_is_nowhere(invitations, tmp_path):
    invitations.add([hash_secret(SECRET)], ends=900.0, now=0.0)
    assert SECRET not in (tmp_path / "mesh" / "invitations.msgpack").read_bytes()


def test_they_do_not_become_too_many_and_old_ones_are_forgotten(invitations):
    invitations.add([bytes([number]) * 32 for number in range(MOST_INVITATIONS)], ends=900.0, now=0.0)
    with pytest.raises(AuthenticationError, match="Wait a while"):
        invitations.add([hash_secret(SECRET)], ends=900.0, now=1.0)
    invitations.add([hash_secret(SECRET)], ends=200_900.0, now=200_000.0)
    invitations.redeem(SECRET, now=200_001.0)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", b"\xdd\xff\xff\xff\xff", b"\x80"], ids=repr)
def test_a_damaged_file_is_named(invitations, tmp_path, data):
    invitations.add([hash_secret(SECRET)], ends=900.0, now=0.0)
    (tmp_path / "mesh" / "invitations.msgpack").write_bytes(data)
    with pytest.raises(AuthenticationError, match="is damaged"):
        invitations.redeem(SECRET, now=1.0)
