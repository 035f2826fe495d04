from datetime import timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import Authority, has_issued, is_signed, utc_now
from layermesh.shared.security.credentials import Credentials, KeptCredentials
from layermesh.shared.security.keys import key_to_pem, make_key, make_request, public_key, read_request
from layermesh.shared.security.nodes import Member, host_name, new_node_id, read_member, read_names

NOW = utc_now().replace(microsecond=0)
AUTHORITY = Authority.make(NOW)
NODE = new_node_id()
KEY = make_key()
CERTIFICATE = AUTHORITY.issue(KEY.public_key(), NODE, "worker", NOW)


def test_a_certificate_says_who_it_is_and_holds_a_year_and_a_day_back():
    expected = Member(NODE, "worker", NOW - timedelta(hours=25), NOW + timedelta(days=365))
    assert read_member(CERTIFICATE) == expected
    assert not CERTIFICATE.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    authority = AUTHORITY.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (authority.ca, authority.path_length) == (True, 0)


def test_an_authority_knows_its_own():
    rogue = Authority.make(NOW)
    assert has_issued(AUTHORITY.certificate, CERTIFICATE)
    assert not has_issued(rogue.certificate, CERTIFICATE)
    assert is_signed(b"x", AUTHORITY.sign(b"x"), AUTHORITY.certificate)
    assert not is_signed(b"y", AUTHORITY.sign(b"x"), AUTHORITY.certificate)
    assert not is_signed(b"x", rogue.sign(b"x"), AUTHORITY.certificate)
    assert not is_signed(b"x", b"", AUTHORITY.certificate)


def test_an_authority_is_kept_and_known_by_its_hash():
    again = Authority.parse(AUTHORITY.to_bytes())
    assert (again.hash, again.certificate) == (AUTHORITY.hash, AUTHORITY.certificate)
    with pytest.raises(ValueError, match="not that of the certificate"):
        Authority.parse(key_to_pem(make_key()) + AUTHORITY.to_bytes()[AUTHORITY.to_bytes().index(b"-----BEGIN CERT") :])


@pytest.mark.parametrize(
    "names",
    [
        [],
        [host_name(NODE)],
        ["urn:layermesh:role:worker"],
        [host_name(NODE), host_name(new_node_id()), "urn:layermesh:role:worker"],
        [host_name(NODE), "urn:layermesh:role:worker", "urn:layermesh:role:coordinator"],
        [host_name(NODE), "urn:layermesh:role:king"],
        ["x.node.layermesh", "urn:layermesh:role:worker"],
        [f"{NODE}.node.layermesh.evil", "urn:layermesh:role:worker"],
    ],
    ids=repr,
)
def test_names_that_say_nobody_or_several_are_refused(names):
    with pytest.raises(ValueError):
        read_names(names)


def test_a_request_says_a_key_and_nothing_else():
    assert read_request(make_request(KEY)) == KEY.public_key()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_request_that_its_owner_did_not_sign_is_refused(place, change):
    data = bytearray(make_request(KEY))
    data[place % len(data)] ^= change
    try:
        assert read_request(bytes(data)) == KEY.public_key()  # a byte that means nothing
    except AuthenticationError as error:
        assert "makes no sense" in str(error)  # noqa: PT017


@pytest.mark.parametrize("data", [b"", b"x", b"\x30\x82" * 100, bytes(5000)], ids=len)
def test_what_is_no_request_is_refused(data):
    with pytest.raises(AuthenticationError):
        read_request(data)


def credentials():
    return Credentials(key_to_pem(KEY), CERTIFICATE, AUTHORITY.certificate)


def test_credentials_are_kept_together(tmp_path):
    kept = KeptCredentials(tmp_path / "keys" / "worker-0.pem")
    assert kept.current() is None
    kept.keep(credentials())
    assert kept.current() == KeptCredentials(kept.path).current() == credentials()
    assert kept.current().mesh == AUTHORITY.hash.hex()[:12]


def test_credentials_that_another_process_renews_are_noticed(tmp_path):
    kept = KeptCredentials(tmp_path / "keys" / "worker-0.pem")
    kept.keep(credentials())
    before = kept.current()
    assert kept.current() is before  # not read again for nothing
    renewed = Credentials(
        key_to_pem(KEY), AUTHORITY.issue(KEY.public_key(), NODE, "worker", NOW + timedelta(days=1)), AUTHORITY.certificate
    )
    KeptCredentials(kept.path).keep(renewed)
    assert kept.current() == renewed


def test_credentials_do_not_show_their_key():
    assert "PRIVATE" not in repr(credentials())


@pytest.mark.parametrize("damage", ["key", "authority", "half", "empty"])
def test_credentials_that_do_not_belong_together_are_refused(tmp_path, damage):
    kept = KeptCredentials(tmp_path / "keys" / "worker-0.pem")
    kept.keep(credentials())
    texts = {
        "key": key_to_pem(make_key()) + credentials().certificate_pem + credentials().authority_pem,
        "authority": Authority.make(NOW).to_bytes() + credentials().certificate_pem,
        "half": credentials().to_bytes()[:600],
        "empty": b"",
    }
    kept.path.write_bytes(texts[damage])
    with pytest.raises(AuthenticationError, match="is damaged"):
        kept.current()


def test_credentials_that_others_can_read_are_refused(tmp_path):
    kept = KeptCredentials(tmp_path / "keys" / "worker-0.pem")
    kept.keep(credentials())
    assert kept.current() is not None
    kept.path.chmod(0o644)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        kept.current()


def test_only_keys_on_p_256_count():
    from cryptography.hazmat.primitives.asymmetric import ec

    with pytest.raises(AuthenticationError):
        read_request(make_request(ec.generate_private_key(ec.SECP384R1())))
    assert public_key(CERTIFICATE) == KEY.public_key()
