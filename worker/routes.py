"""The routes that pass through this worker: where frames come from, which stage runs them, and where they go."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.channels import Channels
from layermesh.shared.errors import BusyError, MeshError
from layermesh.shared.frames import Failure, Frame, Logits, Outcome
from layermesh.shared.hidden_states import blamed
from layermesh.shared.problems import to_problem
from layermesh.shared.protocol import check_version
from layermesh.shared.stage_key import StageKey
from layermesh.shared.wire import MAX_NAME, Envelope, HopTime, Scores, envelope_parts, scores_parts
from layermesh.worker.faults import Fault
from layermesh.worker.host import Host
from layermesh.worker.limits import Load, check_address, check_routes
from layermesh.worker.neighbours import Neighbours
from layermesh.worker.watches import Watch, Watches

Reply = Callable[[pb.ForwardResponse], None]

MAX_HOPS = 1024
GOODBYE_CHECK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class HopHere:
    """One station of a route: who that is, where, and what runs there."""

    worker: str
    address: str
    key: StageKey


@dataclass(slots=True)
class RouteHere:
    """A route of which this worker is a part: its hops, in order, and who is told what becomes of its frames.

    A route that comes by here several times has a stream for each of these hops, and ends with the last of them.
    """

    id: str
    epoch: int
    hops: Sequence[HopHere]
    reply: Reply
    entered: set[int] = field(default_factory=set)  # the hops that have a stream
    waiting: dict[tuple[int, int], list[Envelope]] = field(default_factory=dict)  # by hop and sweep
    load: Load = field(default_factory=Load)


class Routes:
    """Knows the routes, runs their frames on the stages of `host` and sends them on. For the event loop's thread only."""

    def __init__(self, name: str, host: Host, channels: Channels) -> None:
        self._name = name
        self._host = host
        self._routes: dict[str, RouteHere] = {}
        self._neighbours = Neighbours(self._lost, channels)
        self._loop = asyncio.get_running_loop()
        self._watches = Watches(self._loop)
        self._fault = Fault.from_environ()
        self.is_leaving = False

    def enter(self, route: pb.Route, reply: Reply) -> RouteHere:
        """Take note of a route; raises MeshError where it makes no sense or its stage is not ready."""
        if not 0 < len(route.hops) <= MAX_HOPS or route.hop >= len(route.hops) or not 0 < len(route.id) <= MAX_NAME:
            raise MeshError(f"a route of {len(route.hops)} hops makes no sense.")
        check_version(route.version)
        check_routes(self._routes, route.id)
        for hop in route.hops:
            check_address(hop.address)
        hops = [HopHere(hop.worker[:MAX_NAME], hop.address, StageKey.parse(hop.key)) for hop in route.hops]
        here = RouteHere(route.id, route.epoch, hops, reply)
        known = self._routes.get(route.id)
        if known is not None and known.epoch >= route.epoch:
            if (known.epoch, known.hops) != (here.epoch, hops) or route.hop in known.entered:
                raise MeshError(f"route {route.id} has had epoch {route.epoch} already.")
            here = known
        live = self._host.get(hops[route.hop].key)
        self._host.enter(live, route.id)
        self._routes[route.id] = here
        here.entered.add(route.hop)
        if self.is_leaving:
            reply(pb.ForwardResponse(leaving=pb.Leaving()))
        return here

    async def leave(self, here: RouteHere, hop: int) -> None:
        """Note that the stream of a hop has ended; with the last one the route is forgotten, and its sessions are.

        Where a later epoch has taken its place, only what that one does not use is let go of.
        """
        here.entered.discard(hop)
        current = self._routes.get(here.id)
        if current is here and not here.entered:
            del self._routes[here.id]
            current = None
            await self._neighbours.keep({hop.address for route in self._routes.values() for hop in route.hops})
        if current is not here:
            await self.keep_only(here.id, () if current is None else [hop.key for hop in current.hops])

    async def keep_only(self, route: str, keys: Collection[StageKey]) -> None:
        """Let go of the stages, and the sessions on them, that a route has here and that are not among `keys`."""
        for live in self._host.stages:
            if route in live.routes and live.key not in keys:
                await self._host.leave(live, route)

    async def say_goodbye(self, seconds: float) -> None:
        """Tell every coordinator that this worker is about to stop, and wait for at most `seconds` until all have left."""
        self.is_leaving = True
        for here in self._routes.values():
            here.reply(pb.ForwardResponse(leaving=pb.Leaving()))
        deadline = self._loop.time() + seconds
        while self._routes and self._loop.time() < deadline:
            await asyncio.sleep(GOODBYE_CHECK_SECONDS)

    def run(self, envelope: Envelope) -> None:
        """Run a frame as soon as all of its sweep have come; one of a route that is not known any more is dropped."""
        here = self._routes.get(envelope.route)
        if here is None or envelope.frame.epoch != here.epoch or envelope.hop >= len(here.hops):
            return
        place = (envelope.hop, envelope.sweep)
        try:
            here.load.take(envelope)
        except MeshError as error:
            self._fail(here, error)
            return
        together = here.waiting.setdefault(place, [])
        together.append(envelope)
        if len(together) < envelope.sweep_size:
            return
        del here.waiting[place]
        try:
            live = self._host.get(here.hops[envelope.hop].key)
        except BusyError as error:
            here.load.give_back(together)
            self._fail(here, error)
            return
        aboard = [one for one in together if live.sessions.get(one.frame.session) == here.id]
        for stranger in (one for one in together if one not in aboard):
            unknown = MeshError(f"session {stranger.frame.session} is not known on layers {live.key.span}. Start it again.")
            failure = Failure(stranger.frame.session, stranger.frame.step, unknown)
            here.reply(pb.ForwardResponse(failure=self._failure(here, failure)))
            here.load.give_back([stranger])
        if aboard:
            if self._fault is not None:
                self._fault.strike_at(aboard[0].frame.step)
            seconds = max(envelope.deadline for envelope in aboard)
            watch = Watch(seconds, lambda: self._late(here, envelope.hop, seconds))
            self._watches.add(watch)
            live.runner.run(aboard, lambda ran, time: self._ran(here, watch, ran, time), watch.begin)

    def _late(self, here: RouteHere, hop: int, seconds: float) -> None:
        span = here.hops[hop].key.span
        self._fail(here, MeshError(f"layers {span} have not come to an end for {seconds:.0f} s."), hop)

    async def close(self) -> None:
        """Let go of the neighbours."""
        self._watches.close()
        await self._neighbours.close()

    def _ran(self, here: RouteHere, watch: Watch, ran: Sequence[tuple[Envelope, Outcome]], time: HopTime) -> None:
        """From a stage's thread: pack what became of the frames, and hand it to the event loop, which wakes up once."""
        try:
            hop, onward, back = self._packed(here, ran, time)
            send = partial(self._send, here, hop, onward, back)
        except Exception as error:  # whatever it was, nobody may wait in vain
            send = partial(self._fail, here, error)
        with suppress(RuntimeError):  # where the loop is closed nobody is left who would want to know
            self._loop.call_soon_threadsafe(self._end, here, watch, [envelope for envelope, _ in ran], send)

    def _end(self, here: RouteHere, watch: Watch, frames: Sequence[Envelope], send: Callable[[], None]) -> None:
        self._watches.end(watch)
        here.load.give_back(frames)
        send()

    def _packed(
        self, here: RouteHere, ran: Sequence[tuple[Envelope, Outcome]], time: HopTime
    ) -> tuple[int, list[pb.FramePart], list[pb.ForwardResponse]]:
        """Return the hop that comes next, what goes on to it, and what goes back to the coordinator."""
        passing = [envelope for envelope, outcome in ran if isinstance(outcome, Frame) and not envelope.ends_here]
        onward: list[pb.FramePart] = []
        back: list[pb.ForwardResponse] = []
        for envelope, outcome in ran:
            if envelope.ends_here and not isinstance(outcome, Failure):
                back.append(pb.ForwardResponse(replayed=_replayed(here, outcome)))
            elif isinstance(outcome, Frame):
                onward += envelope_parts(envelope.passed(outcome, len(passing), time))
            elif isinstance(outcome, Failure):
                back.append(pb.ForwardResponse(failure=self._blaming(here, envelope.hop, outcome)))
            else:
                scores = Scores(here.id, here.epoch, outcome, (*envelope.times, time))
                back += [pb.ForwardResponse(logits=part) for part in scores_parts(scores)]
        hop = ran[0][0].hop + 1
        if hop == len(here.hops):
            back += [pb.ForwardResponse(frame=part) for part in onward]
            onward = []
        return hop, onward, back

    def _send(self, here: RouteHere, hop: int, onward: Sequence[pb.FramePart], back: Sequence[pb.ForwardResponse]) -> None:
        for response in back:
            here.reply(response)
        if onward:
            self._neighbours.send(here.hops[hop].address, onward)

    def _blaming(self, here: RouteHere, hop: int, failure: Failure) -> pb.FrameFailure:
        """Tell of a failure, and of who brought it about with what it sent, where somebody did."""
        sender = f"worker {here.hops[hop - 1].worker}" if hop else "the coordinator"
        named = blamed(failure, sender)
        told = self._failure(here, named)
        told.lost_hop = hop if named is not failure else 0  # one more than that of the hop before
        return told

    def _failure(self, here: RouteHere, failure: Failure) -> pb.FrameFailure:
        return pb.FrameFailure(
            route=here.id,
            epoch=here.epoch,
            session=failure.session,
            step=failure.step,
            worker=self._name,
            problem=to_problem(failure.error),
        )

    def _fail(self, here: RouteHere, error: Exception, lost_hop: int | None = None) -> None:
        """Tell the coordinator of what concerns the whole route, and of the hop that is to blame, where one is."""
        failure = pb.FrameFailure(route=here.id, epoch=here.epoch, worker=self._name, problem=to_problem(error))
        failure.lost_hop = 0 if lost_hop is None else lost_hop + 1
        here.reply(pb.ForwardResponse(failure=failure))

    def _lost(self, address: str, why: str) -> None:
        """Tell every route that goes on to `address` that nobody answers there."""
        for here in list(self._routes.values()):
            goes_on = (number + 1 for number in sorted(here.entered) if number + 1 < len(here.hops))
            lost = next((number for number in goes_on if here.hops[number].address == address), None)
            if lost is not None:
                name = here.hops[lost].worker
                self._fail(here, MeshError(f"the next worker, {name} at {address}, went away ({why})."), lost)


def _replayed(here: RouteHere, outcome: Frame | Logits) -> pb.Replayed:
    return pb.Replayed(route=here.id, epoch=here.epoch, session=outcome.session, step=outcome.step)
