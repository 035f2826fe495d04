"""`layermesh invite`: let workers into the mesh."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from layermesh.coordinator.enrolment import Enrolment, Guest
from layermesh.coordinator.enrolment_announcing import JoiningAnnouncer, JoiningPlace
from layermesh.interrupts import INTERRUPTED
from layermesh.shared.addresses import format_address, is_unspecified
from layermesh.shared.errors import AuthenticationError
from layermesh.shared.interfaces import machine_addresses
from layermesh.shared.security.invitation import VALID_SECONDS, Invitation
from layermesh.shared.security.mesh_home import MeshHome
from layermesh.terminal import note, print_json_line


@dataclass(frozen=True, slots=True)
class InviteOptions:
    """How many workers are invited, where they are let in, and whether the invitations are shown as JSON."""

    count: int = 1
    host: str | None = None
    port: int | None = None
    announce: bool = True
    as_json: bool = False


def run_invite(options: InviteOptions) -> int:
    """Print invitations and let in whoever has one, until all have come; return the exit code.

    Raises AuthenticationError after 15 minutes, and where too many tries fail.
    """
    mesh = MeshHome()
    is_new = not mesh.exists
    invitations = mesh.invite(options.count)
    if is_new:
        note(f"beginning a mesh: its keys are in {mesh.folder}")
    try:
        return asyncio.run(_Inviting(mesh, invitations, options).run())
    finally:
        mesh.withdraw(invitations)


class _Inviting:
    def __init__(self, mesh: MeshHome, invitations: Sequence[Invitation], options: InviteOptions) -> None:
        self._mesh = mesh
        self._invitations = invitations
        self._options = options
        self._missing = options.count
        self._ended: asyncio.Future[int]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._end, INTERRUPTED)
        enrolment = Enrolment(self._mesh, self._joined, self._fail, self._options.host, self._options.port)
        async with enrolment:
            with ExitStack() as stack:
                if self._options.announce:
                    stack.enter_context(JoiningAnnouncer(self._place(enrolment.port), lambda _: None))
                self._show(enrolment.port)
                await asyncio.wait([self._ended], timeout=VALID_SECONDS)
        if not self._ended.done():
            raise AuthenticationError(
                f"nobody came within 15 minutes ({self._missing} expected). Say `layermesh invite` again."
            )
        return self._ended.result()

    def _place(self, port: int) -> JoiningPlace:
        own = self._mesh.credentials()
        assert own is not None
        return JoiningPlace(self._invitations[0].authority, own.member.node, port)

    def _show(self, port: int) -> None:
        commands = [f"layermesh worker --join {one.token}" for one in self._invitations]
        where = [format_address(address, port) for address in self._addresses()]
        if self._options.as_json:
            tokens = [one.token for one in self._invitations]
            print_json_line({"commands": commands, "tokens": tokens, "port": port, "addresses": where})
        else:
            print("\n".join(commands), flush=True)  # noqa: T201
        machines = "that machine" if len(commands) == 1 else "each of those machines"
        lines = "this line" if len(commands) == 1 else "one of these lines"
        note(f"paste {lines} on {machines}, within 15 minutes; each lets one worker in, once. Ctrl-C takes it back.")
        if where:
            others = f" (or, from another network, {', '.join(where[1:])})" if where[1:] else ""
            note(f"where multicast does not get through, add --coordinator {where[0]}{others}")

    def _addresses(self) -> list[str]:
        """Where this machine can be reached, the likeliest first."""
        if not is_unspecified(self._options.host):
            return [str(self._options.host)]
        return [address for address in machine_addresses() if "%" not in address]

    def _joined(self, guest: Guest) -> None:
        note(f"{guest.name} ({guest.address}) has joined the mesh")
        self._missing -= 1
        if not self._missing:
            # the answer has still to go out
            asyncio.get_running_loop().call_later(0.2, self._end, 0)

    def _fail(self, error: AuthenticationError) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)
