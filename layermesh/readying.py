"""Having workers make ready what they are to run, and sending them what they lack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layermesh.coordinator.event_loop import EventLoop, gather_all
from layermesh.coordinator.registry import Peer
from layermesh.local import LocalModel
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.chunks import Reading, in_chunks
from layermesh.shared.errors import WorkerStarvedError
from layermesh.shared.part_source import PartReading, PartSource
from layermesh.shared.problems import WorkerBudgetError
from layermesh.shared.protocol import MANIFEST, PROTOCOL_VERSION
from layermesh.shared.stage_key import StageKey


@dataclass(frozen=True, slots=True)
class Chosen:
    """A worker, what it is to run, and how much memory that should take."""

    peer: Peer
    key: StageKey
    memory_bytes: int

    @property
    def worker_id(self) -> str:
        """The worker's lasting id."""
        return self.peer.described.worker_id


class Readying:
    """Prepares spans of `local` on workers."""

    def __init__(self, local: LocalModel, loop: EventLoop) -> None:
        self._local = local
        self._loop = loop

    def prepare(
        self, chosen: Sequence[Chosen], peers: Sequence[Peer], route: str | None, caps: Mapping[str, int]
    ) -> list[pb.PrepareReady]:
        """Have all of `chosen` make their spans ready at the same time; what they lack may come from any of `peers`.

        What they have of `route` already and is not among these they let go of. `caps` has the most bytes that some, by id, may
        take. Raises WorkerLostError and WorkerStarvedError for one that cannot, and what else a worker complains about.
        """

        async def prepare() -> list[pb.PrepareReady]:
            return await gather_all([self._prepare_one(one, chosen, peers, route, caps) for one in chosen])

        return self._loop.run(prepare())

    async def _prepare_one(
        self, one: Chosen, chosen: Sequence[Chosen], peers: Sequence[Peer], route: str | None, caps: Mapping[str, int]
    ) -> pb.PrepareReady:
        sources = [
            peer.address_for([one.peer])
            for peer in sorted(peers, key=lambda peer: peer.link.seconds)
            if peer is not one.peer and any(model.fingerprint == one.key.fingerprint for model in peer.described.stored)
        ]
        start = pb.PrepareStart(
            version=PROTOCOL_VERSION,
            key=one.key.to_proto(),
            model=self._local.name,
            revision=self._local.revision,
            sources=sources,
            route=route or "",
            keeps=[other.key.to_proto() for other in chosen if other.worker_id == one.worker_id and other is not one],
            most_bytes=caps.get(one.worker_id, 0),
        )
        client = one.peer.client
        try:
            return await client.while_alive(client.prepare(start, self._read, lambda told: self._progress(one.peer, told)))
        except WorkerBudgetError as error:
            raise WorkerStarvedError(str(error), one.worker_id, error.budget_bytes) from error

    def _read(self, part: str, offset: int) -> Reading:
        if part == MANIFEST:
            return PartReading(in_chunks(self._local.manifest.to_bytes()), offset)
        return PartSource(self._local.checkpoint, self._local.manifest).read(part, offset)

    def _progress(self, peer: Peer, progress: pb.PrepareProgress) -> None:
        self._local.on_progress(peer.name, progress.doing[:80], progress.done_bytes, progress.total_bytes)
