"""A worker's side of pairing: the host is recognised by the invitation before the secret is said."""

import asyncio
import os
import ssl
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from layermesh.shared.addresses import parse_address
from layermesh.shared.errors import AuthenticationError, AwayError
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.enrolment_wire import (
    ENROLMENT_PORT,
    VERSION,
    Message,
    bytes_of,
    hang_up,
    receive_message,
    send_message,
    text_of,
)
from layermesh.shared.security.invitation import Invitation
from layermesh.shared.security.keys import key_hash, key_to_pem, make_key, make_request, public_key
from layermesh.shared.security.nodes import NodeId, read_member
from layermesh.shared.security.removals import SignedRemovals

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
_MOST_CHARS: Final = 600
_EXPIRED: Final = 10  # as OpenSSL numbers what is wrong with a certificate
_NOT_YET: Final = 9


@dataclass(frozen=True, slots=True)
class Joined:
    """What a worker has of a mesh from then on: who it is there, and who was removed."""

    credentials: Credentials
    removals: SignedRemovals | None


class StrangerError(AuthenticationError):
    """Whoever answers is not the one that the invitation comes from."""


async def join(invitation: Invitation, address: str, node: NodeId, name: str) -> Joined:
    """Join the mesh at `address` (HOST:PORT), as `node` if nobody else is.

    Raises AwayError where nobody answers, StrangerError where it is another mesh than the invitation's, AuthenticationError
    where the invitation does not hold any more.
    """
    told = await _ask(address, _unverified(), {"ask": "authority"})
    authority = _authority(bytes_of(told, "authority"), invitation, address)
    key = make_key()
    asking = {"ask": "join", "secret": invitation.secret, "request": make_request(key), "node": node, "name": name}
    answer = await _ask(address, _verifying(authority), asking, check=authority)
    if "refused" in answer:
        raise AuthenticationError(f"{address} did not let this worker in: {text_of(answer, 'refused', _MOST_CHARS)}")
    try:
        credentials = Credentials(key_to_pem(key), x509.load_der_x509_certificate(bytes_of(answer, "certificate")), authority)
        removed = bytes_of(answer, "removed")
        removals = SignedRemovals.parse(removed) if removed else None
    except ValueError as error:
        raise AuthenticationError(f"{address} sent a certificate that makes no sense ({error}).") from error
    if credentials.member.role != "worker":
        raise AuthenticationError(f"{address} sent a certificate that is none for a worker.")
    return Joined(credentials, removals)


def _authority(data: bytes, invitation: Invitation, address: str) -> x509.Certificate:
    try:
        authority = x509.load_der_x509_certificate(data)
        if key_hash(public_key(authority)) == invitation.authority:
            return authority
    except ValueError:
        pass
    raise StrangerError(
        f"the mesh at {address} is not the one that the invitation is for. The secret was not sent. Look at --coordinator, and "
        "whether somebody there stands in for your machine."
    )


async def _ask(address: str, context: ssl.SSLContext, message: Message, check: x509.Certificate | None = None) -> Message:
    """Return the answer to one question; with `check` it is asked only of a coordinator that this authority certified."""
    host, port = parse_address(address, ENROLMENT_PORT)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(error, address) from error
    except (OSError, TimeoutError) as error:
        raise AwayError(
            f"nobody lets workers in at {address} ({_reason(error)}). Does `layermesh invite` still run there?"
        ) from error
    try:
        if check is not None:
            _check_host(writer, address)
        async with asyncio.timeout(ANSWER_SECONDS):
            await send_message(writer, {**message, "version": VERSION})
            return await receive_message(reader)
    except (OSError, TimeoutError) as error:
        raise AwayError(f"{address} went away while this worker was being paired. Try again.") from error
    finally:
        await hang_up(writer)


def _check_host(writer: asyncio.StreamWriter, address: str) -> None:
    """Workers of the mesh have certificates of the same authority, and must not hear the secret."""
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        if read_member(x509.load_der_x509_certificate(shown)).role == "coordinator":
            return
    except ValueError:
        pass
    raise StrangerError(f"who answers at {address} does not coordinate the mesh. The secret was not sent.")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else "no answer"


def _untrusted(error: ssl.SSLCertVerificationError, address: str) -> StrangerError:
    if error.verify_code in (_EXPIRED, _NOT_YET):
        when = "has expired" if error.verify_code == _EXPIRED else "is not yet valid"
        return StrangerError(
            f"the certificate at {address} {when} by this machine's clock. Set the clocks of both. The secret was not sent."
        )
    return StrangerError(f"{address} showed a certificate of somebody else ({error.verify_message}). The secret was not sent.")


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the node's name stands there, not the machine's
    context.verify_mode = ssl.CERT_NONE  # the invitation has the hash of what comes
    return context


def _verifying(authority: x509.Certificate) -> ssl.SSLContext:
    context = _unverified()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.public_bytes(Encoding.DER))
    return context
