"""What stages would cost on a machine: memory, what they read, how long a token takes; many spans at once."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from layermesh.coordinator.planning.machines import Machine
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.coordinator.planning.span_sizes import Reals, SpanSizes
from layermesh.shared.residency import LOOK_AHEAD, MOST_SLOTS

NUM_SLOTS: Final = 1 + LOOK_AHEAD

StageBottleneck = Literal["disk", "bus", "compute"]


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Costs of spans on one machine, arrays as their sizes are.

    `memory_bytes` is all that a stage takes where it computes, of which `resident_bytes` are weights that stay;
    `streamed_bytes` are read from disk for every token. The seconds are of one token: reading, crossing the bus and computing
    go on side by side.
    """

    fits: NDArray[np.bool_]
    memory_bytes: Reals
    resident_bytes: Reals
    streamed_bytes: Reals
    disk_seconds: Reals
    bus_seconds: Reals
    compute_seconds: Reals

    @property
    def seconds(self) -> Reals:
        """The slowest of the three; infinite where the span does not fit."""
        slowest = np.maximum(np.maximum(self.disk_seconds, self.bus_seconds), self.compute_seconds)
        return np.where(self.fits, slowest, np.inf)


def stage_costs(machine: Machine, model: ModelCost, sizes: SpanSizes) -> StageCosts:
    """Return what stages of these `sizes` would cost on `machine`, laid out as `plan_residency` does.

    The head stays before layers do. What stays is counted in whole slots, so it is less than one short of what really will.
    """
    profile = machine.profile
    room = profile.device_bytes - model.base_bytes - sizes.working
    is_resident = sizes.everything <= room
    slots = _slot_bytes(machine, sizes, room)
    left = np.where(is_resident, sizes.everything, room - slots)
    head, layers = _kept(sizes.head_loaded, sizes.loaded, left, slots)
    head_rest, layers_rest = sizes.head_loaded - head, sizes.loaded - layers
    fits, crossing = left >= 0, np.zeros_like(left)
    if has_card(machine):
        host_left = profile.host_bytes - _buffer_bytes(machine, sizes, room)
        crossing = head_rest + layers_rest
        on_host, layers_on_host = _kept(head_rest, layers_rest, host_left, slots)
        head_rest, layers_rest = head_rest - on_host, layers_rest - layers_on_host
        fits &= host_left >= 0
    streamed = head_rest * sizes.head_ratio + layers_rest * sizes.stored_ratio
    return StageCosts(
        fits=fits,
        memory_bytes=model.base_bytes + sizes.working + head + layers + np.where(is_resident, 0, slots),
        resident_bytes=head + layers,
        streamed_bytes=streamed,
        disk_seconds=streamed / profile.disk_rate,
        bus_seconds=crossing / profile.bus_rate if has_card(machine) else crossing,
        compute_seconds=sizes.everything / machine.weight_rate(model.form) + machine.layer_seconds * sizes.num_layers,
    )


@dataclass(frozen=True, slots=True)
class Floor:
    """The least memory that stages can do with, what there is of it, and the flag that says so."""

    needed_bytes: int
    budget_bytes: int
    flag: str


def stage_floor(machine: Machine, model: ModelCost, sizes: SpanSizes) -> Floor:
    """Return the floor of one stage on `machine`: of its device; of its host if that is where a card's stage lacks memory."""
    profile = machine.profile
    least = np.minimum(sizes.everything, NUM_SLOTS * sizes.largest_piece)
    needed = int((model.base_bytes + sizes.working + least).item())
    if not has_card(machine):
        return Floor(needed, profile.device_bytes, "--host-memory")
    if needed > profile.device_bytes:
        return Floor(needed, profile.device_bytes, "--device-memory")
    room = profile.device_bytes - model.base_bytes - sizes.working
    return Floor(int(_buffer_bytes(machine, sizes, room).item()), profile.host_bytes, "--host-memory")


def has_card(machine: Machine) -> bool:
    """Tell whether the machine computes beside its host, with memory of its own."""
    return machine.profile.bus_rate > 0


def _slot_bytes(machine: Machine, sizes: SpanSizes, room: Reals) -> Reals:
    """What the slots of streaming stages take: for pieces of layers where whole ones would take much of the room."""
    whole = NUM_SLOTS * sizes.largest
    needs_pieces = whole > room * (1 if has_card(machine) else MOST_SLOTS)
    return np.where(needs_pieces, NUM_SLOTS * sizes.largest_piece, whole)


def _buffer_bytes(machine: Machine, sizes: SpanSizes, room: Reals) -> Reals:
    """What a card's stages take of the host to read through: whole blocks where all of them will stay on the card."""
    whole = NUM_SLOTS * np.maximum(sizes.largest, sizes.head_loaded)
    return np.where(sizes.everything <= room, whole, _slot_bytes(machine, sizes, room))


def _kept(head: Reals | int, layers: Reals, room: Reals, slots: Reals) -> tuple[Reals, Reals]:
    """Return how many bytes of the head and of the layers find room, each of them whole or as many slots as go in."""
    unit = np.maximum(slots / NUM_SLOTS, 1)
    of_head = np.where(head <= room, head, np.floor(np.maximum(room, 0) / unit) * unit)
    left = room - of_head
    return of_head, np.where(layers <= left, layers, np.floor(np.maximum(left, 0) / unit) * unit)
