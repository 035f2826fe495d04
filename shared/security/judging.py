"""Who it is that was greeted, or why nothing may be said to them: decided from what they showed."""

from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.authority import BACKDATED, has_issued
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.greeting import Greeting
from layermesh.shared.security.nodes import Member, NodeId, read_member

PAIR: Final = "on this machine say `layermesh invite`, and there paste what it prints"


def judge(who: str, greeting: Greeting, own: Credentials | None, removed: AbstractSet[NodeId], now: datetime) -> Member:
    """Return which worker was greeted; `who` is how a user knows it.

    Raises AuthenticationError, with the reason and what to do, for everybody but a worker of our mesh that takes us for one.
    """
    if greeting.certificate is None:
        raise AuthenticationError(
            f"{who} is not paired: nothing is encrypted there. To have it in the mesh, {PAIR}."
            if greeting.is_plain
            else f"{who} speaks no TLS 1.3. Install the same layermesh there; to have it in the mesh, {PAIR}."
        )
    if own is None:
        raise AuthenticationError(
            f"{who} belongs to a mesh, and this machine to none. Say `layermesh generate` where it was invited, or {PAIR}."
        )
    member = _member(who, greeting.certificate, own)
    if member.node in removed:
        raise AuthenticationError(f"{who} was removed from this mesh. To have it back, {PAIR}.")
    if member.role != "worker":
        raise AuthenticationError(f"{who} shows the certificate of a {member.role}, not of a worker. Check the address.")
    _check_dates(who, member, now)
    if not greeting.accepted:
        raise AuthenticationError(_why_refused(who, own.member, now))
    return member


def _member(who: str, certificate: bytes, own: Credentials) -> Member:
    try:
        shown = x509.load_der_x509_certificate(certificate)
        if has_issued(own.authority, shown):
            return read_member(shown)
    except ValueError:
        pass
    raise AuthenticationError(f"{who} is paired with another mesh (ours is {own.mesh}). To have it in this one, {PAIR}.")


def _check_dates(who: str, member: Member, now: datetime) -> None:
    if now > member.ends:
        raise AuthenticationError(
            f"the certificate of {who} has expired: it ended on {member.ends:%Y-%m-%d}, {_span(now - member.ends)} ago by this "
            f"machine's clock. If that clock is right, pair it again: {PAIR}."
        )
    if now < member.begins:
        behind = member.begins + BACKDATED - now
        raise AuthenticationError(
            f"the certificate of {who} is not yet valid: it was made {_span(behind)} from now by this machine's clock "
            f"({now:%Y-%m-%d %H:%M} UTC). Set the clock of this machine; or, if it is right, pair that one again: {PAIR}."
        )


def _why_refused(who: str, own: Member, now: datetime) -> str:
    if now > own.ends:
        return (
            f"{who} refused our certificate: it expired on {own.ends:%Y-%m-%d}, {_span(now - own.ends)} ago by this machine's "
            "clock. Set the clock."
        )
    if now < own.begins:
        return f"{who} refused our certificate: by this machine's clock it begins in {_span(own.begins - now)}. Set the clock."
    return (
        f"{who} refused our certificate, which is valid here ({own.begins:%Y-%m-%d} to {own.ends:%Y-%m-%d}). Look at the clock "
        f"there: it is more than {_span(min(now - own.begins, own.ends - now))} off."
    )


def _span(time: timedelta) -> str:
    hours, minutes = divmod(round(time.total_seconds() / 60), 60)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} h {minutes:02} m"
