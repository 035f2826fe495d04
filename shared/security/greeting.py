"""A first handshake with whoever listens at an address, to learn who that is: gRPC says of refusals only that there was one."""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ANSWER_SECONDS: Final = 0.8
_PLAIN: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST", "UNEXPECTED_MESSAGE")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What came of it: the certificate that was shown, in DER, and whether ours was `accepted`.

    Without a certificate it either speaks in plain (`is_plain`) or broke the handshake off.
    """

    certificate: bytes | None = None
    accepted: bool = False
    is_plain: bool = False


async def greet(host: str, port: int, credentials: Path | None, seconds: float) -> Greeting:
    """Shake hands in TLS 1.3, showing the certificate in the file `credentials`, and hang up. Nothing is checked here.

    Raises OSError where nobody listens, TimeoutError where nobody answers.
    """
    context = await asyncio.to_thread(_context, credentials)
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, ssl_handshake_timeout=seconds)
    except ssl.SSLError as error:
        return Greeting(is_plain=error.reason in _PLAIN)
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        return Greeting()
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return Greeting(certificate, await _goes_on(reader))
    finally:
        writer.transport.abort()


async def _goes_on(reader: asyncio.StreamReader) -> bool:
    """Whether the other side speaks after it has seen our certificate, as HTTP/2 does; it hangs up if it refuses it."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            return len(await reader.read(1)) > 0
    return False


def _context(credentials: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whoever it is, its certificate is what this is about
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if credentials is not None:
        context.load_cert_chain(credentials)
    return context
