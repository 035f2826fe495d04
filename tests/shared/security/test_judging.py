from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import Authority, utc_now
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.greeting import Greeting
from layermesh.shared.security.judging import judge
from layermesh.shared.security.keys import key_to_pem, make_key
from layermesh.shared.security.nodes import new_node_id

NOW = utc_now()
DAY = timedelta(days=1)
AUTHORITY = Authority.make(NOW)
NODE = new_node_id()


def shown(authority=AUTHORITY, role="worker", made=NOW):
    return authority.issue(make_key().public_key(), NODE, role, made).public_bytes(Encoding.DER)


def own(made=NOW):
    key = make_key()
    return Credentials(
        key_to_pem(key), AUTHORITY.issue(key.public_key(), new_node_id(), "coordinator", made), AUTHORITY.certificate
    )


def test_a_worker_of_our_mesh_is_taken_for_what_it_is():
    member = judge("worker den", Greeting(shown(), accepted=True), own(), frozenset(), NOW)
    assert (member.node, member.role) == (NODE, "worker")


@pytest.mark.parametrize("hours", [-24, -3, 3, 24])
def test_clocks_may_be_hours_off(hours):
    assert judge("x", Greeting(shown(), accepted=True), own(), frozenset(), NOW + timedelta(hours=hours)).node == NODE


@pytest.mark.parametrize(
    ("greeting", "mine", "removed", "reason"),
    [
        (Greeting(is_plain=True), own(), (), r"worker den is not paired: nothing is encrypted there.*layermesh invite"),
        (Greeting(), own(), (), r"worker den speaks no TLS 1\.3"),
        (Greeting(shown(), accepted=False), None, (), r"belongs to a mesh, and this machine to none"),
        (Greeting(shown(Authority.make(NOW)), accepted=True), own(), (), r"paired with another mesh \(ours is [0-9a-f]{12}\)"),
        (Greeting(b"nonsense", accepted=True), own(), (), r"is paired with another mesh"),
        (Greeting(shown(), accepted=True), own(), (NODE,), r"was removed from this mesh"),
        (Greeting(shown(role="coordinator"), accepted=True), own(), (), r"certificate of a coordinator, not of a worker"),
        (Greeting(shown(made=NOW - 367 * DAY), accepted=True), own(), (), r"has expired.* 2 days ago by this machine's clock"),
        (Greeting(shown(made=NOW + 5 * DAY), accepted=True), own(), (), r"not yet valid: it was made 5 days from now"),
        (Greeting(shown(), accepted=False), own(NOW - 366 * DAY), (), r"refused our certificate: it expired .* 24 h 00 m ago"),
        (Greeting(shown(), accepted=False), own(NOW + 2 * DAY), (), r"our certificate: by this machine's clock it begins"),
        (Greeting(shown(), accepted=False), own(), (), r"refused our certificate, which is valid here.*25 h 00 m off"),
    ],
)  # fmt: skip
def test_everybody_else_is_refused_with_the_reason(greeting, mine, removed, reason):
    with pytest.raises(AuthenticationError, match=reason) as refused:
        judge("worker den", greeting, mine, frozenset(removed), NOW)
    assert refused.value.exit_code == 5
