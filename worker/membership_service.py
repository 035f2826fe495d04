"""What the coordinator of a mesh says to a worker about who belongs to it."""

import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import MembershipServiceServicer
from layermesh.shared.errors import AuthenticationError
from layermesh.shared.security.keys import make_key, make_request
from layermesh.shared.security.nodes import NodeId
from layermesh.shared.security.removals import SignedRemovals
from layermesh.worker.membership import Membership

_LOG: Final = logging.getLogger(__name__)
_MOST_BYTES: Final = 16 << 10
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class MembershipService(MembershipServiceServicer):
    """The worker's side of what a coordinator says about who belongs; `cut` breaks off everything with nodes that do not."""

    def __init__(self, membership: Membership, cut: Callable[[AbstractSet[NodeId]], Awaitable[None]]) -> None:
        self._membership = membership
        self._cut = cut
        self._pending: ec.EllipticCurvePrivateKey | None = None

    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveResponse:
        """Who was removed."""
        try:
            number, is_new = self._membership.learn_removed(SignedRemovals(request.body, request.signature))
        except AuthenticationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        if is_new:
            removed, own = self._membership.removed(), self._membership.credentials()
            if own is not None and own.member.node in removed:
                _LOG.warning(
                    "This worker was removed from its mesh. To have it back, say `layermesh invite` on the coordinator."
                )
            await self._cut(removed)
        return pb.RemoveResponse(number=number)

    async def BeginRenewal(self, request: pb.BeginRenewalRequest, context: Context) -> pb.BeginRenewalResponse:
        """A request for a new key, which takes effect with its certificate."""
        self._pending = make_key()
        return pb.BeginRenewalResponse(request=make_request(self._pending))

    async def FinishRenewal(self, request: pb.FinishRenewalRequest, context: Context) -> pb.FinishRenewalResponse:
        """The certificate of that key: shown from the next connection on."""
        pending, self._pending = self._pending, None
        if pending is None or len(request.certificate) > _MOST_BYTES:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no certificate was asked for")
        assert pending is not None
        try:
            self._membership.renew(pending, request.certificate)
        except AuthenticationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.FinishRenewalResponse()
