"""Who is there: workers that were named or announced themselves, and what they say of themselves."""

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from layermesh.coordinator.browsing import Browser
from layermesh.coordinator.event_loop import EventLoop
from layermesh.coordinator.planning.machines import Link
from layermesh.coordinator.worker_client import WorkerClient
from layermesh.coordinator.worker_info import RunningInfo, StoredInfo, WorkerInfo
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.addresses import format_address, is_loopback, parse_address
from layermesh.shared.errors import MeshError
from layermesh.shared.profile_wire import profile_from_proto
from layermesh.shared.spans import LayerSpan

LOOK_SECONDS = 1.5  # how long the first look around may take
RETURN_SECONDS = 1.0  # between two looks for a worker that was lost
LINK_SECONDS = 60.0  # after which a link is measured again
TAKEN = frozenset({"local"})  # what the coordinator's own machine is called in plans


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker that answered: how to call it, what it says, and the way there."""

    client: WorkerClient
    described: pb.DescribeResponse
    link: Link

    @property
    def name(self) -> str:
        """What its user calls it."""
        return self.client.name

    def address_for(self, others: Sequence["Peer"]) -> str:
        """Where `others` reach it: as this machine does, unless that is a way that only this machine has."""
        here = self.client.address
        if "%" not in here and (not is_loopback(here) or all(is_loopback(other.client.address) for other in others)):
            return here
        reachable = [address for address in self.described.addresses if not is_loopback(address) and "%" not in address]
        return reachable[0] if reachable else self.client.address


@dataclass(slots=True)
class _Known:
    client: WorkerClient
    link: Link | None = None
    measured: float = 0.0


class Registry:
    """Looks for workers from the moment it is made: those at `addresses` (HOST:PORT), and announced ones if `discover`.

    Close it, or use it as a context manager.
    """

    def __init__(self, addresses: Sequence[str] = (), *, discover: bool = True) -> None:
        self._named = [format_address(*parse_address(address)) for address in addresses]
        self._began = time.monotonic()
        self._known: dict[str, _Known] = {}
        self._open = ExitStack()
        self.loop = EventLoop()
        self._open.callback(self.loop.close)
        self._browser = self._open.enter_context(Browser()) if discover else None
        self.notices: tuple[str, ...] = ()
        self.returned: frozenset[str] = frozenset()  # of those that are watched for, the ids that answer
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everybody."""

        async def close() -> None:
            await asyncio.gather(*(known.client.close() for known in self._known.values()))

        if self._known:
            self.loop.run(close())
            self._known = {}
        self._open.close()

    def watch_for(self, workers: Collection[str]) -> None:
        """Look for workers by id, every second until they answer; `returned` says who did."""

        async def begin() -> None:
            if self._watch is not None:
                self._watch.cancel()
            self._watch = asyncio.create_task(self._look_for(workers)) if workers else None

        self.returned = frozenset()
        self.loop.run(begin())

    async def _look_for(self, workers: Collection[str]) -> None:
        while self.returned != frozenset(workers):
            await asyncio.sleep(RETURN_SECONDS)
            for addresses in self._places().values():
                answer = await self._ask(addresses) if self._may_be(addresses, workers) else None
                if isinstance(answer, Peer) and answer.described.worker_id in workers:
                    self.returned |= {answer.described.worker_id}

    def _may_be(self, addresses: Sequence[str], workers: Collection[str]) -> bool:
        """Whether one of `workers` may be there: an address where another one answered is none of theirs."""
        known = {self._known[address].client.worker_id for address in addresses if address in self._known}
        return not known or not known.isdisjoint({*workers, ""})

    def find(self, without: Collection[str] = ()) -> list[Peer]:
        """Return the workers that answer, ordered by name; `notices` says what was wrong with others.

        Those whose ids are in `without` are not asked.

        Raises MeshError where one that was named has never answered; one that has and went away is left out.
        """
        return [peer for peer in self.loop.run(self._find(self._addresses(), without)) if not peer.described.leaving]

    def survey(self) -> list[WorkerInfo]:
        """Return everybody who was named or announced, whether or not they answer, ordered by name."""
        places = self._addresses()

        async def ask() -> list[WorkerInfo]:
            answers = await asyncio.gather(*map(self._ask, places.values()))
            return [_info(place, addresses, answer) for (place, addresses), answer in zip(places.items(), answers, strict=True)]

        found = {info.worker_id: info for info in self.loop.run(ask())}
        return sorted(found.values(), key=lambda info: (info.name, info.worker_id))

    @property
    def problem(self) -> str | None:
        """Why nobody can be found unless named; None as far as is known."""
        return None if self._browser is None else self._browser.problem

    def _addresses(self) -> dict[str, list[str]]:
        """Where to look for each worker, once others have had the time to announce themselves."""
        patience = max(self._began + LOOK_SECONDS - time.monotonic(), 0)
        if self._browser is not None and patience:
            self._browser.wait(patience, lambda _: False)
        return self._places()

    def _places(self) -> dict[str, list[str]]:
        """Where to look for each worker: whoever was named at that address, announced ones at any of theirs."""
        places = {address: [address] for address in self._named}
        for announcement in () if self._browser is None else self._browser.found():
            places[announcement.worker_id] = [format_address(host, announcement.port) for host in announcement.addresses]
        return places

    async def _find(self, places: dict[str, list[str]], without: Collection[str]) -> list[Peer]:
        places = {place: addresses for place, addresses in places.items() if not self._is_one_of(addresses, without)}
        answers = await asyncio.gather(*(self._ask(addresses) for addresses in places.values()))
        peers: dict[str, Peer] = {}
        notices = []
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Peer) and answer.described.worker_id in without:
                continue
            if isinstance(answer, Peer):
                peers.setdefault(answer.described.worker_id, answer)
            elif place in self._named and not self._has_answered(place):
                raise answer
            else:
                notices.append(str(answer))
        self.notices = (*notices, *filter(None, [self.problem]))
        return _distinct(sorted(peers.values(), key=lambda peer: (peer.name, peer.described.worker_id)))

    def _is_one_of(self, addresses: Sequence[str], workers: Collection[str]) -> bool:
        return any(address in self._known and self._known[address].client.worker_id in workers for address in addresses)

    def _has_answered(self, address: str) -> bool:
        return address in self._known and self._known[address].link is not None

    async def _ask(self, addresses: Sequence[str]) -> Peer | MeshError:
        """Return the worker at whichever of `addresses` answers first, or what was wrong at the last of them.

        Addresses that hold on one link of this machine only are tried last: other workers cannot use them.
        """
        answer: Peer | MeshError = MeshError("a worker announces itself and has no address.")
        for on_one_link in (False, True):
            tried = [address for address in addresses if ("%" in address) is on_one_link]
            if tried and isinstance(answer, MeshError):
                answer = await self._first_of(tried)
        return answer

    async def _first_of(self, addresses: Sequence[str]) -> Peer | MeshError:
        problem = MeshError("nobody answers there.")
        tries = [asyncio.create_task(self._try(address)) for address in addresses]
        try:
            for answer in asyncio.as_completed(tries):
                try:
                    return await answer
                except MeshError as error:
                    problem = error
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        return problem

    async def _try(self, address: str) -> Peer:
        known = self._known.setdefault(address, _Known(WorkerClient(address)))
        described = await known.client.describe()
        if known.link is None or time.monotonic() - known.measured > LINK_SECONDS:
            known.link, known.measured = await known.client.measure_link(), time.monotonic()
        return Peer(known.client, described, known.link)


def _info(place: str, addresses: Sequence[str], answer: Peer | MeshError) -> WorkerInfo:
    """Return what `answer` says of the worker that was looked for as `place`."""
    if isinstance(answer, MeshError):
        return WorkerInfo(place, addresses[0] if addresses else place, ", ".join(addresses), problem=str(answer))
    told = answer.described
    names = {model.fingerprint: model.name for model in told.stored}
    return WorkerInfo(
        worker_id=told.worker_id,
        name=answer.name,
        address=answer.client.address,
        version=told.version,
        software=told.software,
        device=told.device,
        profile=profile_from_proto(told.profile),
        running=tuple(_running(one, names.get(one.key.fingerprint, one.model)) for one in told.running),
        stored=tuple(StoredInfo(model.name, model.num_bytes) for model in told.stored),
        last_seen_seconds=0.0,
    )


def _running(running: pb.RunningSpan, model: str) -> RunningInfo:
    return RunningInfo(
        model,
        LayerSpan(running.key.start, running.key.end),
        running.resident_bytes,
        running.streamed_bytes,
        running.seconds_per_token,
        running.num_sessions,
    )


def _distinct(peers: Sequence[Peer]) -> list[Peer]:
    """Give workers of the same name different ones."""
    names = [peer.described.name for peer in peers]
    for peer in peers:
        if names.count(peer.described.name) > 1 or peer.described.name in TAKEN:
            peer.client.name = f"{peer.described.name[:80]} ({peer.described.worker_id[:6]})"
    return list(peers)
