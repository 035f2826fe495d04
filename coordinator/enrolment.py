"""The coordinator's side of pairing: whoever shows an invitation gets a certificate."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from cryptography.hazmat.primitives.serialization import Encoding

from layermesh.shared.errors import AuthenticationError, LayermeshError, UsageError
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
from layermesh.shared.security.invitation import SECRET_BYTES
from layermesh.shared.security.keys import MOST_REQUEST_BYTES, read_request
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.shared.security.nodes import is_node_id, node_id, read_member

MOST_ATTEMPTS: Final = 100  # that fail, before something must be wrong
MOST_GUESTS: Final = 32  # at a time
PATIENCE_SECONDS: Final = 10.0
HANDSHAKE_SECONDS: Final = 5.0
_MOST_BYTES: Final = 16 << 10
_MOST_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class Guest:
    """A worker that has joined: its id, the name that it gave itself, and its address."""

    node: str
    name: str
    address: str


class Enrolment:
    """Serves those who were invited to `mesh` while it is entered, at `host` (or all) and `port` (or the usual one, or any).

    `joined` is called in the event loop for each that was let in, `failed` with why where too many tries fail.
    """

    def __init__(
        self,
        mesh: MeshHome,
        joined: Callable[[Guest], None],
        failed: Callable[[AuthenticationError], None],
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        self.port = 0
        self._mesh = mesh
        self._joined = joined
        self._failed = failed
        self._host = host
        self._ports = (ENROLMENT_PORT, 0) if port is None else (port,)
        self._guests = 0
        self._attempts = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        credentials = self._mesh.credentials()
        if credentials is None:
            raise AuthenticationError("nobody can be paired before there is a mesh. Say `layermesh invite`.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._mesh.credentials_path)
        self._server = await self._listen(context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()

    async def _listen(self, context: ssl.SSLContext) -> asyncio.Server:
        problem: OSError | None = None
        for port in self._ports:
            try:
                number = port or _free_port(self._host)  # one for IPv4 and IPv6
                return await asyncio.start_server(
                    self._welcome, self._host, number, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS, limit=_MOST_BYTES
                )
            except OSError as error:
                problem = error
        where = f"{self._host or 'port'} {self._ports[0]}"
        raise UsageError(f"cannot listen at {where}: {problem}. Say another --port (0 for any) or --host.") from problem

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear one question out and answer it; whoever takes long, or says nonsense, is left."""
        try:
            if self._guests < MOST_GUESTS:
                self._guests += 1
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        answer = await self._answer(await receive_message(reader, _MOST_BYTES), _address(writer))
                        await send_message(writer, answer)
                finally:
                    self._guests -= 1
        except (OSError, TimeoutError, LayermeshError):
            pass
        finally:
            await hang_up(writer)

    async def _answer(self, message: Message, address: str) -> Message:
        if message.get("version") != VERSION:
            return {"refused": "the versions of layermesh differ. Install the same on both."}
        if message.get("ask") == "authority":
            authority = await asyncio.to_thread(self._mesh.authority)
            return {"authority": authority.certificate.public_bytes(Encoding.DER)}
        try:
            return await asyncio.to_thread(self._admit, message, address)
        except AuthenticationError as error:
            self._count_failure()
            return {"refused": str(error)}

    def _admit(self, message: Message, address: str) -> Message:
        secret = bytes_of(message, "secret", SECRET_BYTES)
        wanted, name = text_of(message, "node", 64), _plain(text_of(message, "name", _MOST_NAME))
        if not is_node_id(wanted):
            raise AuthenticationError("a worker without an id. Install the same layermesh there.")
        key = read_request(bytes_of(message, "request", MOST_REQUEST_BYTES))
        certificate = self._mesh.admit(secret, key, node_id(wanted), name)
        _, removed = self._mesh.signed_removals()
        guest = Guest(read_member(certificate).node, name, address)
        self._server_loop().call_soon_threadsafe(self._joined, guest)
        return {
            "certificate": certificate.public_bytes(Encoding.DER),
            "removed": b"" if removed is None else removed.to_bytes(),
        }

    def _server_loop(self) -> asyncio.AbstractEventLoop:
        assert self._server is not None
        return self._server.get_loop()

    def _count_failure(self) -> None:
        self._attempts += 1
        if self._attempts == MOST_ATTEMPTS:
            self._failed(
                AuthenticationError(
                    f"{MOST_ATTEMPTS} tries to pair failed: somebody on this network is guessing, or pastes something old "
                    "again and again. Nobody was let in by that. Look who it is, then say `layermesh invite` again."
                )
            )


def _free_port(host: str | None) -> int:
    with socket.socket(socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET) as probe:
        probe.bind((host or "", 0))
        return int(probe.getsockname()[1])


def _plain(name: str) -> str:
    """A name as it may be kept and shown, whoever chose it."""
    return "".join(char for char in " ".join(name.split()) if char.isprintable()) or "worker"


def _address(writer: asyncio.StreamWriter) -> str:
    peer: Any = writer.get_extra_info("peername")
    return str(peer[0]) if peer else "?"
