"""How much of everything a worker takes on for others, so that nobody can fill its memory."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from layermesh.shared.addresses import parse_address, split_pin
from layermesh.shared.errors import BusyError, LayermeshError, MeshError
from layermesh.shared.frames import Frame, SessionId
from layermesh.shared.wire import MAX_FRAME_BYTES, Envelope

MAX_CALLS: Final = 512  # under way at once, of everybody
MAX_ROUTES: Final = 256
MAX_SESSIONS: Final = 4096
MAX_SESSIONS_PER_ROUTE: Final = 1024
MAX_SOURCES: Final = 64  # that may have parts of a model
MAX_ADDRESS: Final = 300  # characters of one
MAX_FRAMES: Final = 4096  # of a route that wait here, for others of their sweep or for the stage
MAX_HELD_BYTES: Final = MAX_FRAME_BYTES + (MAX_FRAME_BYTES >> 1)  # the largest frame, and many of usual size


@dataclass(slots=True)
class Load:
    """What is held of a route's frames, from their coming until they have been run."""

    num_frames: int = 0
    num_bytes: int = 0

    def take(self, envelope: Envelope) -> None:
        """Count one that came; raises MeshError, having counted nothing, where too many wait."""
        num_bytes = self.num_bytes + frame_bytes(envelope.frame)
        if self.num_frames >= MAX_FRAMES or num_bytes > MAX_HELD_BYTES:
            raise MeshError(
                f"{self.num_frames} frames of this route wait here, with {self.num_bytes:,} bytes, and no more are taken. "
                "Start it again."
            )
        self.num_frames, self.num_bytes = self.num_frames + 1, num_bytes

    def give_back(self, envelopes: Iterable[Envelope]) -> None:
        """Count those no longer that were taken and have been run or dropped."""
        for envelope in envelopes:
            self.num_frames -= 1
            self.num_bytes -= frame_bytes(envelope.frame)


def frame_bytes(frame: Frame) -> int:
    """Return the bytes of what a frame carries."""
    tensors = () if frame.hidden is None else frame.hidden.tensors
    return 8 * len(frame.token_ids) + sum(tensor.nbytes for tensor in tensors if tensor is not None)


def check_routes(known: Collection[str], route: str) -> None:
    """Raise BusyError where a worker that knows `known` takes no more routes."""
    if route not in known and len(known) >= MAX_ROUTES:
        raise BusyError(f"{len(known)} routes lead through this worker, which takes no more until one ends.")


def check_sessions(on_stages: Iterable[Mapping[SessionId, str]], session: SessionId, route: str) -> None:
    """Raise BusyError where no session more is taken, on `route` or at all; `on_stages` has each stage's, and their routes."""
    others = [of for sessions in on_stages for name, of in sessions.items() if name != session]
    if len(others) >= MAX_SESSIONS or others.count(route) >= MAX_SESSIONS_PER_ROUTE:
        raise BusyError(f"this worker has {len(others)} sessions and takes no more until some end.")


def check_address(address: str) -> None:
    """Raise MeshError for what is no HOST:PORT."""
    try:
        if len(address) > MAX_ADDRESS:
            raise ValueError("too long")
        parse_address(split_pin(address)[1])
    except (ValueError, LayermeshError) as error:
        raise MeshError(f"{address[:80]!r} is no address of a worker (HOST:PORT).") from error


def usable_sources(sources: Iterable[str]) -> list[str]:
    """Return the first of `sources` that can be addresses; the others are passed over, since the coordinator has every part."""
    usable: list[str] = []
    for address in sources:
        if len(usable) == MAX_SOURCES:
            break
        try:
            check_address(address)
        except MeshError:
            continue
        usable.append(address)
    return usable
