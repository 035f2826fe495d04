"""Who is there: workers that were named or announced themselves, and what they say of themselves."""

import asyncio
import time
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass

from layermesh.coordinator.browsing import Browser
from layermesh.coordinator.event_loop import EventLoop
from layermesh.coordinator.members import Members
from layermesh.coordinator.planning.machines import Link
from layermesh.coordinator.worker_client import WorkerClient
from layermesh.coordinator.worker_info import WorkerInfo, read_info
from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.addresses import format_address, is_loopback, parse_address, pin
from layermesh.shared.announcement import Announcement
from layermesh.shared.errors import AuthenticationError, AwayError, MeshError
from layermesh.shared.interfaces import machine_addresses
from layermesh.shared.security.judging import PAIR
from layermesh.shared.security.mesh_home import MeshHome

LOOK_SECONDS = 1.5  # how long the first look around may take
RETURN_SECONDS = 1.0  # between two looks for a worker that was lost
LINK_SECONDS = 60.0  # after which a link is measured again
TAKEN = frozenset({"local"})  # what the coordinator's own machine is called in plans
Absence = MeshError | AuthenticationError  # why somebody cannot be used


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
        """Where `others` reach it and nobody else: as this machine does, unless that way is this machine's alone."""
        place = self._place_for(others)
        return place if self.client.node is None else pin(place, self.client.node)

    def _place_for(self, others: Sequence["Peer"]) -> str:
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

    They belong to `mesh`, by default that of this machine's user, but for those on this machine that belong to none. Close it,
    or use it as a context manager.
    """

    def __init__(self, addresses: Sequence[str] = (), *, discover: bool = True, mesh: MeshHome | None = None) -> None:
        self._named = [format_address(*parse_address(address)) for address in addresses]
        self._began = time.monotonic()
        self._known: dict[str, _Known] = {}
        self._announced: dict[str, Announcement] = {}
        self.members = Members(mesh or MeshHome())
        self._open = ExitStack()
        self.loop = EventLoop()
        self._open.callback(self.loop.close)
        watching = self.members.watch(lambda: [known.client for known in self._known.values()])
        asyncio.run_coroutine_threadsafe(watching, self.loop.loop)
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
            places = [addresses for addresses in self._places().values() if self._may_be(addresses, workers)]
            for answer in await asyncio.gather(*map(self._ask, places)):
                if isinstance(answer, Peer) and answer.described.worker_id in workers and not answer.described.leaving:
                    self.returned |= {answer.described.worker_id}

    def _may_be(self, addresses: Sequence[str], workers: Collection[str]) -> bool:
        """Whether one of `workers` may be there: an address where another one answered is none of theirs."""
        known = {self._known[address].client.worker_id for address in addresses if address in self._known}
        return not known or not known.isdisjoint({*workers, ""})

    def find(self, without: Collection[str] = ()) -> list[Peer]:
        """Return the workers that answer, ordered by name; `notices` says what was wrong with others.

        Those whose ids are in `without` are not asked.

        Raises MeshError where one that was named has never answered, AuthenticationError where it may not take part; one that
        has answered and went away is left out.
        """
        return [peer for peer in self.loop.run(self._find(self._addresses(), without)) if not peer.described.leaving]

    def survey(self) -> list[WorkerInfo]:
        """Return everybody who was named or announced, whether or not they answer, ordered by name."""
        places = self._addresses()

        async def ask() -> list[WorkerInfo]:
            answers = await asyncio.gather(*map(self._ask, places.values()))
            return [
                _info(self._name(place), place, addresses, self._explained(place, answer))
                for (place, addresses), answer in zip(places.items(), answers, strict=True)
            ]

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
        found = () if self._browser is None else self._browser.found()
        self._announced = {announcement.worker_id: announcement for announcement in found}
        here = {address.partition("%")[0] for address in machine_addresses()} if found else set()
        return places | {announcement.worker_id: _places(announcement, here) for announcement in found}

    async def _find(self, places: dict[str, list[str]], without: Collection[str]) -> list[Peer]:
        places = {place: addresses for place, addresses in places.items() if not self._is_one_of(addresses, without)}
        answers = await asyncio.gather(*(self._ask(addresses) for addresses in places.values()))
        peers: dict[str, Peer] = {}
        notices = []
        for place, answer in zip(places, answers, strict=True):
            answer = self._explained(place, answer)
            if isinstance(answer, Peer) and answer.described.worker_id in without:
                continue
            if isinstance(answer, Peer):
                peers.setdefault(answer.described.worker_id, answer)
            elif place in self._named and not self._has_answered(place):
                raise answer
            else:
                notices.append(str(answer))
        usable, left_out = _of_one_kind(list(peers.values()))
        self.notices = (*notices, *left_out, *filter(None, [self.problem]))
        return _distinct(sorted(usable, key=lambda peer: (peer.name, peer.described.worker_id)))

    def _name(self, place: str) -> str:
        """What to call a worker that does not answer."""
        return self._announced[place].name if place in self._announced else ""

    def _explained(self, place: str, answer: Peer | Absence) -> Peer | Absence:
        """Say of a worker that announces itself as not paired what that means, rather than that it does not answer."""
        announced = self._announced.get(place)
        if announced is None or announced.mesh or not isinstance(answer, AwayError):
            return answer
        return AuthenticationError(f"{announced.name} is here but not paired: {PAIR}.")

    def _is_one_of(self, addresses: Sequence[str], workers: Collection[str]) -> bool:
        return any(address in self._known and self._known[address].client.worker_id in workers for address in addresses)

    def _has_answered(self, address: str) -> bool:
        return address in self._known and self._known[address].link is not None

    async def _ask(self, addresses: Sequence[str]) -> Peer | Absence:
        """Return the worker at whichever of `addresses` answers first, or what was wrong at the last of them.

        Addresses that hold on one link of this machine only are tried last: other workers cannot use them.
        """
        answer: Peer | Absence = MeshError("a worker announces itself and has no address.")
        for on_one_link in (False, True):
            tried = [address for address in addresses if ("%" in address) is on_one_link]
            if tried and not isinstance(answer, Peer):
                answer = await self._first_of(tried)
        return answer

    async def _first_of(self, addresses: Sequence[str]) -> Peer | Absence:
        problem: Absence = AwayError("nobody answers there.")
        tries = [asyncio.create_task(self._try(address)) for address in addresses]
        try:
            for answer in asyncio.as_completed(tries):
                try:
                    return await answer
                except (MeshError, AuthenticationError) as error:
                    if not isinstance(problem, AuthenticationError):  # which says more
                        problem = error
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        return problem

    async def _try(self, address: str) -> Peer:
        known = self._known.setdefault(address, _Known(WorkerClient(address, self.members.channels)))
        described = await known.client.describe()
        await self.members.tend(known.client)
        if known.link is None or time.monotonic() - known.measured > LINK_SECONDS:
            known.link, known.measured = await known.client.measure_link(), time.monotonic()
        return Peer(known.client, described, known.link)


def _places(announcement: Announcement, here: AbstractSet[str]) -> list[str]:
    """Where to look for a worker: before it is paired only on its own machine, which may be this one."""
    if not announcement.mesh and not here.isdisjoint(announcement.addresses):
        return [format_address("127.0.0.1", announcement.port)]
    return [format_address(host, announcement.port) for host in announcement.addresses]


def _of_one_kind(peers: Sequence[Peer]) -> tuple[Sequence[Peer], list[str]]:
    """Return who can work together, and what to say of those that are left out: paired workers talk to paired ones only."""
    paired = [peer for peer in peers if peer.client.node is not None]
    if not paired:
        return peers, []
    plain = [peer.name for peer in peers if peer.client.node is None]
    return paired, [
        f"worker {name} on this machine is not paired and the others are: start it again, and it will be." for name in plain
    ]


def _info(name: str, place: str, addresses: Sequence[str], answer: Peer | Absence) -> WorkerInfo:
    """Return what `answer` says of the worker that was looked for as `place`."""
    if isinstance(answer, Peer):
        return read_info(answer.name, answer.client.address, answer.described)
    return WorkerInfo(place, name or (addresses[0] if addresses else place), ", ".join(addresses), problem=str(answer))


def _distinct(peers: Sequence[Peer]) -> list[Peer]:
    """Give workers of the same name different ones."""
    names = [peer.described.name for peer in peers]
    for peer in peers:
        if names.count(peer.described.name) > 1 or peer.described.name in TAKEN:
            peer.client.name = f"{peer.described.name[:80]} ({peer.described.worker_id[:6]})"
    return list(peers)
