"""How a worker comes by its place in a mesh: by an invitation, or because the mesh is its own user's."""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from layermesh.shared.errors import AuthenticationError, AwayError, UsageError
from layermesh.shared.security.authority import has_issued, utc_now
from layermesh.shared.security.credentials import Credentials
from layermesh.shared.security.invitation import Invitation
from layermesh.shared.security.keys import key_hash, key_to_pem, make_key, public_key
from layermesh.shared.security.mesh_home import MeshHome, is_due
from layermesh.shared.security.nodes import node_id
from layermesh.terminal import note
from layermesh.worker.finding import CoordinatorFinder
from layermesh.worker.identity import WorkerPlace
from layermesh.worker.joining import Joined, StrangerError, join
from layermesh.worker.membership import Membership

FIND_SECONDS = 20.0
AGAIN_SECONDS = 0.5
MOST_TOKEN_BYTES = 4096
VARIABLE = "LAYERMESH_JOIN"


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What was said about joining: an invitation, a file that has one, and where the coordinator is (HOST:PORT)."""

    token: str | None = None
    file: Path | None = None
    coordinator: str | None = None

    def invitation(self) -> Invitation | None:
        """Return the invitation. Raises UsageError for a file that cannot be read, AuthenticationError for what is none."""
        os.environ.pop(VARIABLE, None)  # processes that we start need not have it
        if self.file is None:
            return None if not self.token else Invitation.parse(self.token)
        try:
            with self.file.open("rb") as file:
                return Invitation.parse(file.read(MOST_TOKEN_BYTES).decode("ascii", errors="replace"))
        except OSError as error:
            raise UsageError(f"no invitation can be read from {self.file}: {error.strerror}.") from error


def pair(place: WorkerPlace, name: str, options: JoinOptions) -> Membership:
    """Return what the worker at `place` has of a mesh, after joining one if it was invited.

    Raises AuthenticationError where the invitation does not hold, AwayError where nobody is there who gave it.
    """
    membership, invitation = Membership(place.credentials), options.invitation()
    known = membership.credentials()
    if invitation is not None and not _belongs(membership, known, invitation.authority):
        _keep(membership, place, _join(invitation, options.coordinator, place, name))
    elif invitation is None:
        _pair_at_home(membership, known, place, name)
    _warn(membership)
    return membership


def _warn(membership: Membership) -> None:
    """Say what keeps a worker that is paired from being used."""
    known = membership.credentials()
    if known is not None and utc_now() > known.member.ends:
        note(f"note: this worker's certificate expired on {known.member.ends:%Y-%m-%d}. Pair it again: `layermesh invite`.")
    elif known is not None and known.member.node in membership.removed():
        note("note: this worker was removed from its mesh. To have it back, pair it again: `layermesh invite`.")


def _belongs(membership: Membership, known: Credentials | None, authority: bytes) -> bool:
    """Whether an invitation has nothing more to give: one that stays in a unit's environment is no mistake."""
    if known is None or key_hash(public_key(known.authority)) != authority:
        return False
    return utc_now() < known.member.ends and known.member.node not in membership.removed()


def _join(invitation: Invitation, coordinator: str | None, place: WorkerPlace, name: str) -> Joined:
    node = node_id(place.read_id())
    if coordinator is not None:
        try:
            return asyncio.run(join(invitation, coordinator, node, name))
        except AwayError as error:
            raise AuthenticationError(f"{error} Once an invitation was used or has expired, it ends: say it again.") from error
    note("looking for the machine that the invitation comes from …")
    deadline, known, problem = time.monotonic() + FIND_SECONDS, 0, ""
    with CoordinatorFinder(invitation.authority) as finder:
        while (left := deadline - time.monotonic()) > 0:
            found = finder.wait(left, known)
            for address in found[known:]:
                try:
                    return asyncio.run(join(invitation, address, node, name))
                except (AwayError, StrangerError) as error:
                    problem = f" {error}"
            known = len(found)
        problem = problem or (f" Multicast: {finder.problem}." if finder.problem else "")
    raise AuthenticationError(
        f"nobody on this network lets this worker in by that invitation.{problem} It may have been used or have expired, or "
        "`layermesh invite` has ended: say it again. If multicast does not get through, add --coordinator HOST:PORT."
    )


def _pair_at_home(membership: Membership, known: Credentials | None, place: WorkerPlace, name: str) -> None:
    """Join the mesh that this user coordinates on this machine, if there is one and the worker has none, or renew there."""
    mesh = MeshHome()
    if not mesh.exists:
        return
    authority = mesh.authority()
    if known is not None and (not has_issued(authority.certificate, known.certificate) or not is_due(known.member, utc_now())):
        return
    key = make_key()
    if known is not None:
        if known.member.node in mesh.removed():
            return
        certificate = mesh.renew(known.member.node, key.public_key())
    else:
        certificate = mesh.enrol(key.public_key(), node_id(place.read_id()), name)
    credentials = Credentials(key_to_pem(key), certificate, authority.certificate)
    _keep(membership, place, Joined(credentials, mesh.signed_removals()[1]))


def _keep(membership: Membership, place: WorkerPlace, joined: Joined) -> None:
    membership.join(joined.credentials, joined.removals)
    place.write_id(joined.credentials.member.node)
    note(f"paired: this worker belongs to mesh {joined.credentials.mesh} from now on, also after a restart")
