"""How a guest and a host speak while a worker is paired: a question and an answer over one TLS connection each."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, cast

from msgpack import UnpackException, packb, unpackb

from layermesh.shared.errors import AuthenticationError

JOIN_TYPE: Final = "_layermesh-join._tcp.local."
ENROLMENT_PORT: Final = 50701
VERSION: Final = 1
MOST_BYTES: Final = 256 << 10
CLOSE_SECONDS: Final = 0.5
_LENGTH_BYTES: Final = 4

Message = dict[str, Any]


async def send_message(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    """Send one message."""
    data = cast("bytes", packb(dict(message)))
    writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)
    await writer.drain()


async def receive_message(reader: asyncio.StreamReader, most_bytes: int = MOST_BYTES) -> Message:
    """Return the message that comes next. Raises AuthenticationError for what is none, or a larger one."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES))
        if length > most_bytes:
            raise ValueError(f"a message of {length} bytes")
        data = await reader.readexactly(length)
        message = unpackb(data, max_map_len=16, max_array_len=0, max_ext_len=0, max_str_len=4096, max_bin_len=most_bytes)
        if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
            raise ValueError("no message")
    except (asyncio.IncompleteReadError, UnpackException, ValueError) as error:
        raise AuthenticationError(
            "the other side does not speak as layermesh does. Install the same version on both."
        ) from error
    return message


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """End a connection properly, or else at once."""
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    writer.transport.abort()


def text_of(message: Message, key: str, most_chars: int) -> str:
    """Return a text of a message. Raises AuthenticationError where there is none."""
    value = message.get(key)
    if not isinstance(value, str) or len(value) > most_chars:
        raise AuthenticationError(f"a message without a sensible {key}. Install the same layermesh on both.")
    return value


def bytes_of(message: Message, key: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Return bytes of a message. Raises AuthenticationError where there are none."""
    value = message.get(key)
    if not isinstance(value, bytes) or len(value) > most_bytes:
        raise AuthenticationError(f"a message without a sensible {key}. Install the same layermesh on both.")
    return value
