"""Other machines brought into play for a model: who is there, what each gets, and the line that runs through them."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from layermesh.coordinator.mesh_pipeline import MeshPipeline
from layermesh.coordinator.pipeline import Pipeline, Resumable
from layermesh.coordinator.plan import StagePlan
from layermesh.coordinator.planning.mesh_plan import MeshPlan
from layermesh.coordinator.recovery.decisions import Rebuild, Standing, decide
from layermesh.coordinator.recovery.lasting_line import LastingLine, trouble
from layermesh.coordinator.registry import Peer, Registry
from layermesh.coordinator.remote_route import RemoteHop, RemoteRoute
from layermesh.local import WORKER_NAME, LocalModel
from layermesh.planning import Planning
from layermesh.protos import mesh_pb2 as pb
from layermesh.readying import Chosen, Readying
from layermesh.shared.errors import BusyError, WorkerLostError, WorkerStarvedError
from layermesh.shared.model.dividing import why_undivided
from layermesh.shared.prediction import Prediction
from layermesh.shared.spans import LayerSpan
from layermesh.shared.stage_key import StageKey
from layermesh.shared.units import format_seconds

T = TypeVar("T")
NUM_TRIES = 20  # where another coordinator gets in first with another division
RETRY_SECONDS = 0.5
EVERYBODY = Rebuild()


@dataclass(frozen=True, slots=True)
class Found:
    """The workers that there are for a model, and what would run where."""

    peers: tuple[Peer, ...]
    plan: MeshPlan


class Workers:
    """Finds workers for `local`, and lets it run through them from the next request on.

    With `spread` everybody gets a share, even where fewer machines would be faster.
    """

    def __init__(self, local: LocalModel, registry: Registry, *, spread: bool = False) -> None:
        self._local = local
        self._registry = registry
        self._planning = Planning(local, spread=spread)
        self._readying = Readying(local, registry.loop)
        self._route: RemoteRoute | None = None
        self._is_alone = True  # with all layers here, and a line through them
        self._caps: dict[str, int] = {}  # of workers that have turned out to have less memory than they say
        self._present: list[Chosen] = []  # what runs now
        self._placed: list[tuple[str, LayerSpan]] = []  # by the workers' ids, the own part too
        self._before: list[tuple[str, LayerSpan]] = []  # the same, before the last change in the middle of an answer
        self._given: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._said = ""
        self._notices: set[str] = set()

    def find(self, what_if: Sequence[str] = (), order: Rebuild = EVERYBODY) -> Found | None:
        """Return who is there and what would run where, with the machines of `what_if` too; None where nobody is.

        `order` says who is not asked. Raises MeshError where a worker that was named does not answer, UsageError for a machine
        that nobody can imagine.
        """
        reason = why_undivided(self._local.definition.model)
        if reason is not None:
            self._say(f"{self._local.name} cannot be divided among machines ({reason}): running alone")
            return None
        peers = self._registry.find(order.without)
        self._names |= {peer.described.worker_id: peer.name for peer in peers}
        for notice in self._registry.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                self._tell(f"note: {notice}")
        if not peers and not what_if:
            self._say("no workers found: running alone")
            return None
        mine = [one.peer.described.worker_id for one in self._present]
        return Found(tuple(peers), self._planning.plan(peers, what_if, mine, order.caps))

    def engage(self) -> None:
        """Look who is there, and run through them if that is faster than alone.

        Raises MeshError where a worker that was named does not answer, and what a worker has to complain about.
        """
        if isinstance(self._local.line, LastingLine):
            self._caps |= self._local.line.caps
        standing = Standing(caps=self._caps)
        while True:
            try:
                self._engage(standing)
                return
            except (WorkerLostError, WorkerStarvedError) as error:
                if not error.worker:
                    raise
                standing, (instruction,) = decide(standing, trouble(error, self.given_bytes))
                if not isinstance(instruction, Rebuild):
                    raise
                self._tell(f"{error} Going on without that.")

    def close(self) -> None:
        """Let go of the workers."""
        self._leave()
        self._registry.close()

    def rebuild(self, order: Rebuild) -> Resumable:
        """Make a line anew in the middle of answers: as a later epoch of the route that there is, or through nobody.

        Raises WorkerLostError and WorkerStarvedError for a worker that fails meanwhile.
        """
        before, route_id = self._route, None if self._route is None else self._route.id
        self._before = self._placed

        def build() -> Resumable:
            found = self.find(order=order)
            self._check_present(found, order)
            if found is None:
                return self._alone()
            with suppress(BusyError):
                if (patched := self._patched(found, order)) is not None:
                    return self._bring_up(patched, self._chosen(patched), route_id, order)
            chosen = self._chosen(found)
            return self._bring_up(found, chosen, route_id, order) if chosen else self._alone()

        line = _patiently(build)
        if before is not None:
            before.close()
        return line

    def _patched(self, found: Found, order: Rebuild) -> Found | None:
        """Return the plan that leaves everybody who is left what they have, if it is worth having; only they go on at once."""
        here = {peer.described.worker_id: peer.name for peer in found.peers} | {WORKER_NAME: WORKER_NAME}
        placed = [(here.get(who, ""), span) for who, span in self._placed]
        if self._route is None or not order.caps.keys().isdisjoint(who for who, _ in self._placed):
            return None
        plan = self._planning.patch(found.peers, placed, order.caps, found.plan)
        return None if plan is None else replace(found, plan=plan)

    def name(self, worker: str) -> str:
        """What its user calls a worker."""
        return self._names.get(worker, worker[:8])

    def given_bytes(self, worker: str) -> int:
        """How much memory the plan took of a worker."""
        return self._given.get(worker, 0)

    def successors(self, worker: str) -> tuple[str, ...]:
        """Who runs, since the last `rebuild`, layers that a worker ran before it, or ran those that it runs now."""
        lost = [span for who, span in self._before if who == worker]
        if lost:
            others = [who for who, span in self._placed if who != worker and any(map(span.overlaps, lost))]
        else:
            gained = [span for who, span in self._placed if who == worker]
            others = [who for who, span in self._before if who != worker and any(map(span.overlaps, gained))]
        return tuple(dict.fromkeys("this machine" if who == WORKER_NAME else self.name(who) for who in others))

    def await_return(self, workers: Collection[str]) -> None:
        """Begin to look whether workers that were lost answer again; instead of those that were looked for before."""
        self._registry.watch_for(workers)

    def returned(self) -> frozenset[str]:
        """Those of the awaited that answer again."""
        return self._registry.returned

    def _engage(self, standing: Standing) -> None:
        order = standing.rebuild()

        def build() -> Resumable | None:
            found = self.find(order=order)
            chosen = [] if found is None else self._chosen(found)
            if found is None or not chosen:
                if found is not None:
                    self._say(f"{_count(found.peers)} found, and this machine is faster alone")
                return None if self._is_alone else self._alone()
            if _present(chosen) == _present(self._present) and self._route is not None and not self._route.is_broken:
                return None
            self._leave()
            self._say(_sentence(found))
            return self._bring_up(found, chosen, None, order)

        line = _patiently(build)
        if line is not None:
            self._registry.watch_for(standing.awaited)
            self._local.line = line if self._route is None else LastingLine(line, self, self._tell, standing)

    def _chosen(self, found: Found) -> list[Chosen]:
        """Who runs something, in the order of the route."""
        by_name = {peer.name: peer for peer in found.peers}
        stages = [stage for stage in found.plan.stages if stage.machine != WORKER_NAME]
        return [
            Chosen(by_name[stage.machine], self._local.stage_key(stage.span, has_head=stage.has_head), stage.memory_bytes)
            for stage in stages
        ]

    def _bring_up(self, found: Found, chosen: Sequence[Chosen], route_id: str | None, order: Rebuild) -> MeshPipeline:
        """Have everybody make ready what they are to run, and open the route through them."""
        self._given, self._is_alone = {}, False
        for one in chosen:
            self._given[one.worker_id] = self._given.get(one.worker_id, 0) + one.memory_bytes
        ready = self._readying.prepare(chosen, found.peers, route_id, order.caps)
        own = next((stage for stage in found.plan.stages if stage.machine == WORKER_NAME), None)
        self._local.run_part(LayerSpan(0, self._local.definition.num_layers) if own is None else own.span)
        peers = [one.peer for one in chosen]
        hops = [RemoteHop(one.peer.client, one.key, one.peer.address_for(peers)) for one in chosen]
        self._route = RemoteRoute(self._registry.loop, hops, route_id, order.epoch)
        self._local.has_part = own is not None
        self._local.remote_stages = tuple(_stage_plan(one, each) for one, each in zip(chosen, ready, strict=True))
        self._local.predicted = Prediction(found.plan.seconds_per_token, found.plan.bottleneck)
        self._present = list(chosen)
        self._placed = [(one.worker_id, one.key.span) for one in chosen]
        if own is not None:
            self._placed.append((WORKER_NAME, own.span))
        slowest = max(stage.seconds for stage in found.plan.stages)
        return MeshPipeline(self._route, None if own is None else self._local.stage, self._wait, slowest)

    def _tell(self, text: str) -> None:
        self._local.on_tell(text)

    def _wait(self) -> None:
        self._local.on_wait()

    def _alone(self) -> Pipeline:
        self._leave()
        self._placed = [(WORKER_NAME, LayerSpan(0, self._local.definition.num_layers))]
        line = self._local.run_alone()
        self._is_alone = True
        return line

    def _check_present(self, found: Found | None, order: Rebuild) -> None:
        """Raise WorkerLostError for a worker of the route that has gone away as well."""
        there = {peer.described.worker_id for peer in found.peers} if found is not None else set[str]()
        for one in self._present:
            if one.worker_id not in there | order.without:
                raise WorkerLostError(f"worker {one.peer.client.who} does not answer any more.", one.worker_id)

    def _leave(self) -> None:
        if self._route is not None:
            self._route.close()
        self._route, self._present = None, []

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._tell(sentence)


def _present(chosen: Sequence[Chosen]) -> list[tuple[str, StageKey]]:
    return [(one.worker_id, one.key) for one in chosen]


def _patiently(build: Callable[[], T]) -> T:
    """Return what `build` returns, once whoever was first with another division is done."""
    for number in range(NUM_TRIES):
        try:
            return build()
        except BusyError:
            if number + 1 == NUM_TRIES:
                raise
            time.sleep(RETRY_SECONDS)
    raise AssertionError


def _stage_plan(one: Chosen, ready: pb.PrepareReady) -> StagePlan:
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
