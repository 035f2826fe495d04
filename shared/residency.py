"""Which blocks stay in memory and which stream, decided once for a budget."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layermesh.shared.errors import BudgetError
from layermesh.shared.model.blocks import Block, split_head
from layermesh.shared.model.pieces import split_layer

LOOK_AHEAD = 1  # blocks being read while one computes
MOST_SLOTS = 1 / 16  # of the memory that layers could stay in; where buffers for whole layers take more, they come in pieces


@dataclass(frozen=True, slots=True)
class Residency:
    """Where the blocks of a stage live: `resident` ones are read once and stay, the others pass through `num_slots` buffers.

    `blocks` is the order of a sweep, a head too large for a slot already in pieces. `working_bytes` is set aside for
    everything else: what stays beside the stream, caches, activations, decoding. Where the device has memory of its own,
    everything it gets passes through two buffers on the host, and the blocks `on_host` stay there: they cross the bus in every
    sweep, or are computed with where they are, for which `host_working_bytes` are set aside; reading takes
    `host_reading_bytes` there.
    """

    blocks: tuple[Block, ...]
    resident: frozenset[str]
    num_slots: int
    slot_bytes: int
    working_bytes: int
    on_host: frozenset[str] = frozenset()
    host_working_bytes: int = 0
    host_reading_bytes: int = 0

    @property
    def resident_bytes(self) -> int:
        """Memory that the resident blocks take."""
        return sum(block.loaded_bytes for block in self.blocks if block.name in self.resident)

    @property
    def stays_whole(self) -> bool:
        """Whether all blocks stay on the device, so that a token takes as long as computing does."""
        return len(self.resident) == len(self.blocks)

    @property
    def streamed(self) -> tuple[Block, ...]:
        """The blocks that are read again in every sweep, in order."""
        return tuple(block for block in self.blocks if block.name not in self.resident | self.on_host)

    @property
    def streamed_bytes(self) -> int:
        """Bytes read from disk in every sweep."""
        return sum(block.stored_bytes for block in self.streamed)

    @property
    def bus_bytes(self) -> int:
        """Bytes copied from the host to a device with memory of its own in every sweep."""
        return sum(block.loaded_bytes for block in self.blocks if block.name not in self.resident)

    @property
    def buffer_bytes(self) -> int:
        """Size of a buffer on the host through which blocks go to a device with memory of its own, if they fit."""
        return self.slot_bytes or max((block.loaded_bytes for block in self.blocks), default=0)

    @property
    def host_bytes(self) -> int:
        """Host memory of the whole stage where the device has memory of its own."""
        kept = sum(block.loaded_bytes for block in self.blocks if block.name in self.on_host)
        largest = max((block.loaded_bytes for block in self.blocks), default=0)
        own_buffer = largest if largest > self.buffer_bytes else 0  # a head that stays, while it is read
        buffers = own_buffer + (1 + LOOK_AHEAD) * self.buffer_bytes
        return kept + buffers + self.host_working_bytes + self.host_reading_bytes

    def is_laid_out_as(self, other: "Residency") -> bool:
        """Whether the same blocks stay and the others pass through the same slots."""
        return self._layout == other._layout

    @property
    def _layout(self) -> tuple[object, ...]:
        return (
            self.resident,
            self.on_host,
            self.host_working_bytes > 0,
            self.num_slots,
            self.slot_bytes,
            [block.name for block in self.blocks],
        )

    @property
    def total_bytes(self) -> int:
        """Memory of the whole stage."""
        return self.working_bytes + self.resident_bytes + self.num_slots * self.slot_bytes


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What may be taken of the host beside a device with memory of its own, and what reading and computing there take of it."""

    budget_bytes: int
    reading_bytes: int = 0
    working_bytes: int = 0


def plan_residency(
    blocks: Sequence[Block],
    budget_bytes: int,
    working_bytes: int,
    flag: str = "--host-memory",
    host: HostRoom | None = None,
) -> Residency:
    """Choose what stays within `budget_bytes`, of which `working_bytes` are spoken for.

    The set is fixed: a cyclic scan longer than a cache gives least-recently-used replacement no hits at all. The head goes
    first, then layers, spread evenly so that the disk never rests. `host` is given where the device has memory of its own: what
    finds no place there stays on the host as far as that goes. Raises BudgetError, with the least that would do and the `flag`
    to say it with, when not even one block and its look-ahead fit.
    """
    everything = Residency(tuple(blocks), frozenset(block.name for block in blocks), 0, 0, working_bytes)
    if everything.total_bytes <= budget_bytes:
        return everything if host is None else _use_host(everything, replace(host, working_bytes=0))
    layers = [block for block in blocks if block.layer is not None]
    heads = [block for block in blocks if block.layer is None]
    num_slots = 1 + LOOK_AHEAD
    slot_bytes = max((block.loaded_bytes for block in layers), default=0)
    in_pieces = None
    if _needs_pieces(num_slots * slot_bytes, budget_bytes - working_bytes, host):
        in_pieces = _floor_in_pieces(layers, heads, working_bytes)
        if in_pieces is not None and in_pieces.total_bytes <= budget_bytes:
            return _fill(in_pieces, budget_bytes, host)
    head_bytes = sum(block.loaded_bytes for block in heads)
    with_head = working_bytes + num_slots * slot_bytes + head_bytes
    if heads and with_head > budget_bytes:
        heads = [piece for block in heads for piece in split_head(block, slot_bytes)]
        slot_bytes = max(block.loaded_bytes for block in (*layers, *heads))
    ordered = (*layers, *heads)
    floor = Residency(ordered, frozenset(), num_slots, slot_bytes, working_bytes)
    if floor.total_bytes > budget_bytes:
        floors = [everything.total_bytes, with_head, floor.total_bytes]
        needed_bytes = min([*floors, in_pieces.total_bytes] if in_pieces is not None else floors)
        raise BudgetError("the model", budget_bytes, needed_bytes, flag)
    return _fill(floor, budget_bytes, host)


def _fill(floor: Residency, budget_bytes: int, host: HostRoom | None) -> Residency:
    """Let stay what fits beside what `floor` takes: the head, then layers or their pieces from all over the stack."""
    heads = [block for block in floor.blocks if block.layer is None]
    layers = [block for block in floor.blocks if block.layer is not None and not block.is_core]
    chosen = _choose([*heads, *spread(layers)], budget_bytes - floor.total_bytes)
    plan = replace(floor, resident=floor.resident | chosen)
    return plan if host is None else _use_host(plan, host)


def _needs_pieces(slots_bytes: int, room_bytes: int, host: HostRoom | None) -> bool:
    """Whether buffers for whole layers would take much of the memory that layers could stay in.

    Beside a device with memory of its own they are divided only where they do not fit at all: the host computes whole ones.
    """
    return slots_bytes > room_bytes * (MOST_SLOTS if host is None else 1)


def _floor_in_pieces(layers: Sequence[Block], heads: Sequence[Block], working_bytes: int) -> Residency | None:
    """The least that runs with layers in pieces, of which only the cores stay; None where no layer can be divided."""
    pieces = [piece for block in layers for piece in split_layer(block)]
    if len(pieces) == len(layers):
        return None
    slot_bytes = max(piece.loaded_bytes for piece in pieces if not piece.is_core)
    heads = [piece for block in heads for piece in split_head(block, slot_bytes)]
    slot_bytes = max(slot_bytes, *(block.loaded_bytes for block in heads), 0)
    cores = frozenset(piece.name for piece in pieces if piece.is_core)
    return Residency((*pieces, *heads), cores, 1 + LOOK_AHEAD, slot_bytes, working_bytes)


def _use_host(plan: Residency, host: HostRoom) -> Residency:
    """Keep on the host what fits there beside the buffers, and beside what computing takes if there is room for that."""
    plan = replace(plan, host_reading_bytes=host.reading_bytes)
    if plan.host_bytes > host.budget_bytes:
        raise BudgetError("reading blocks for the device", host.budget_bytes, plan.host_bytes)
    if plan.host_bytes + host.working_bytes <= host.budget_bytes:
        plan = replace(plan, host_working_bytes=host.working_bytes)
    heads = [block for block in plan.streamed if block.layer is None]
    layers = spread([block for block in plan.blocks if block.layer is not None])
    others = [block for block in layers if block.name not in plan.resident]
    return replace(plan, on_host=_choose([*heads, *others], host.budget_bytes - plan.host_bytes))


def _choose(blocks: Sequence[Block], num_bytes: int) -> frozenset[str]:
    """Take from `blocks` what fits, the first ones first."""
    chosen = []
    for block in blocks:
        if block.loaded_bytes <= num_bytes:
            chosen.append(block.name)
            num_bytes -= block.loaded_bytes
    return frozenset(chosen)


def spread(layers: Sequence[Block]) -> list[Block]:
    """Order layers so that every beginning of the list is spread evenly over the stack (the bits of the index, reversed)."""
    num_bits = max(len(layers) - 1, 1).bit_length()
    ordered = sorted(range(len(layers)), key=lambda index: int(f"{index:0{num_bits}b}"[::-1], 2))
    return [layers[index] for index in ordered]
