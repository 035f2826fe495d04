"""Other machines brought into play for a model: who is there, what each gets, and the line that runs through them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layermesh.coordinator.mesh_pipeline import MeshPipeline
from layermesh.coordinator.plan import StagePlan
from layermesh.coordinator.planning.mesh_plan import MeshPlan
from layermesh.coordinator.registry import Peer, Registry
from layermesh.coordinator.remote_route import RemoteHop, RemoteRoute
from layermesh.local import WORKER_NAME, LocalModel
from layermesh.planning import Planning
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.chunks import Reading, in_chunks
from layermesh.shared.errors import BusyError
from layermesh.shared.model.dividing import why_undivided
from layermesh.shared.part_source import PartReading, PartSource
from layermesh.shared.prediction import Prediction
from layermesh.shared.protocol import MANIFEST, PROTOCOL_VERSION
from layermesh.shared.spans import LayerSpan
from layermesh.shared.stage_key import StageKey
from layermesh.shared.units import format_seconds

Tell = Callable[[str], None]
NUM_TRIES = 20  # where another coordinator gets in first with another division
RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A worker and what it is to run."""

    peer: Peer
    key: StageKey


@dataclass(frozen=True, slots=True)
class Found:
    """The workers that there are for a model, and what would run where."""

    peers: tuple[Peer, ...]
    plan: MeshPlan


class Workers:
    """Finds workers for `local`, and lets it run through them from the next request on.

    With `spread` everybody gets a share, even where fewer machines would be faster. `tell` is given what a user should know.
    """

    def __init__(self, local: LocalModel, registry: Registry, *, spread: bool = False, tell: Tell = lambda _: None) -> None:
        self._local = local
        self._registry = registry
        self._planning = Planning(local, spread=spread)
        self._tell = tell
        self._present: list[tuple[str, StageKey]] = []  # what runs now, by the workers' ids
        self._said = ""
        self._notices: set[str] = set()

    def find(self, what_if: Sequence[str] = ()) -> Found | None:
        """Return who is there and what would run where, with the machines of `what_if` too; None where nobody is.

        Raises MeshError where a worker that was named does not answer, UsageError for a machine that nobody can imagine.
        """
        reason = why_undivided(self._local.definition.model)
        if reason is not None:
            self._say(f"{self._local.name} cannot be divided among machines ({reason}): running alone")
            return None
        peers = self._registry.find()
        for notice in self._registry.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                self._tell(f"note: {notice}")
        if not peers and not what_if:
            self._say("no workers found: running alone")
            return None
        return Found(tuple(peers), self._planning.plan(peers, what_if, [worker_id for worker_id, _ in self._present]))

    def engage(self) -> None:
        """Look who is there, and run through them if that is faster than alone.

        Raises MeshError where a worker that was named does not answer, and what a worker has to complain about.
        """
        for number in range(NUM_TRIES):
            found = self.find()
            if found is None:
                self._run_alone()
                return
            try:
                self._run_through(found)
                return
            except BusyError:
                if number + 1 == NUM_TRIES:
                    raise
                time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Let go of the workers."""
        self._leave()
        self._registry.close()

    def _run_through(self, found: Found) -> None:
        stages = [stage for stage in found.plan.stages if stage.machine != WORKER_NAME]
        if not stages:
            self._say(f"{_count(found.peers)} found, and this machine is faster alone")
            self._run_alone()
            return
        by_name = {peer.name: peer for peer in found.peers}
        keys = [self._local.stage_key(stage.span, has_head=stage.has_head) for stage in stages]
        chosen = [_Chosen(by_name[stage.machine], key) for stage, key in zip(stages, keys, strict=True)]
        present = [(one.peer.described.worker_id, one.key) for one in chosen]
        if present == self._present and not self._is_broken():
            return
        self._leave()
        self._say(_sentence(found))
        ready = self._prepare(chosen)
        own = next((stage for stage in found.plan.stages if stage.machine == WORKER_NAME), None)
        self._local.run_part(LayerSpan(0, self._local.definition.num_layers) if own is None else own.span)
        peers = [one.peer for one in chosen]
        hops = [RemoteHop(one.peer.client, one.key, one.peer.address_for(peers)) for one in chosen]
        route = RemoteRoute(self._registry.loop, hops)
        self._local.line = MeshPipeline(route, None if own is None else self._local.stage, lambda: self._local.on_wait())
        self._local.has_part = own is not None
        self._local.remote_stages = tuple(_stage_plan(one, each) for one, each in zip(chosen, ready, strict=True))
        self._local.predicted = Prediction(found.plan.seconds_per_token, found.plan.bottleneck)
        self._present = present

    def _run_alone(self) -> None:
        if isinstance(self._local.line, MeshPipeline):  # in use, or left over from a preparation that failed
            self._leave()
            self._local.run_alone()

    def _leave(self) -> None:
        if isinstance(self._local.line, MeshPipeline):
            self._local.line.close()
        self._present = []

    def _is_broken(self) -> bool:
        return not isinstance(self._local.line, MeshPipeline) or self._local.line.is_broken

    def _prepare(self, chosen: Sequence[_Chosen]) -> list[pb.PrepareReady]:
        """Have all workers make their spans ready at the same time."""
        loop = self._registry.loop

        async def prepare() -> list[pb.PrepareReady]:
            return await asyncio.gather(*(self._prepare_one(one, chosen) for one in chosen))

        return loop.run(prepare())

    async def _prepare_one(self, one: _Chosen, chosen: Sequence[_Chosen]) -> pb.PrepareReady:
        peers = [other.peer for other in chosen]
        others = [
            peer.address_for(peers)
            for peer in peers
            if peer is not one.peer and any(model.fingerprint == one.key.fingerprint for model in peer.described.stored)
        ]
        start = pb.PrepareStart(
            version=PROTOCOL_VERSION,
            key=one.key.to_proto(),
            model=self._local.name,
            revision=self._local.revision,
            sources=others,
        )
        return await one.peer.client.prepare(start, self._read, lambda progress: self._progress(one.peer, progress))

    def _read(self, part: str, offset: int) -> Reading:
        if part == MANIFEST:
            return PartReading(in_chunks(self._local.manifest.to_bytes()), offset)
        return PartSource(self._local.checkpoint, self._local.manifest).read(part, offset)

    def _progress(self, peer: Peer, progress: pb.PrepareProgress) -> None:
        self._local.on_progress(peer.name, progress.doing[:80], progress.done_bytes, progress.total_bytes)

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._tell(sentence)


def _stage_plan(one: _Chosen, ready: pb.PrepareReady) -> StagePlan:
    span = one.key.span
    return StagePlan(one.peer.name, span.start, span.end, ready.resident_bytes, ready.streamed_bytes)


def _sentence(found: Found) -> str:
    parts = ", ".join(f"{stage.machine} {_range(stage.span)}" for stage in found.plan.stages)
    return (
        f"{_count(found.peers)}: {parts}; predicted {format_seconds(found.plan.seconds_per_token)}/token, "
        f"bottleneck: {found.plan.bottleneck}"
    )


def _range(span: LayerSpan) -> str:
    return f"{span.start}–{span.end - 1}" if span.end > span.start else "the head"


def _count(peers: Sequence[Peer]) -> str:
    return f"{len(peers)} worker{'s' * (len(peers) != 1)}"
