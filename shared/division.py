"""Which part each stored tensor of a model is in, and which parts each of its blocks needs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.model.blocks import Block, BlockTable
from layermesh.shared.model.recipes import sources_of
from layermesh.shared.parts import EMBED, HEAD, REST


@dataclass(frozen=True, slots=True)
class Division:
    """The tensors of each part by name, in order, and the parts that each block needs ("head" where that comes in pieces)."""

    parts: Mapping[str, tuple[str, ...]]
    needs: Mapping[str, tuple[str, ...]]


def divide(table: BlockTable) -> Division:
    """Put every stored tensor that `table` needs into one part.

    What one block needs is in the part of its name, what several need in "rest", which every machine has; only the tables
    that rows are looked up in are a part of their own, also where the head is such a table.
    """
    users = _users(table)
    place = {stored: _part_of(users[stored]) for stored in sorted(users, key=lambda stored: users[stored].first)}
    blocks = [REST, EMBED, *(block.name for block in table.layers), HEAD]
    parts = {part: tuple(name for name in place if place[name] == part) for part in blocks}
    parts = {part: names for part, names in parts.items() if names}
    used = {block: {place[name] for name, found in users.items() if block in found.blocks} for block in blocks}
    return Division(parts, {block: tuple(part for part in parts if part in used[block]) for block in blocks})


@dataclass(slots=True)
class _Users:
    """The blocks that need a stored tensor, and the first place of it that any of them reads."""

    blocks: set[str]
    first: tuple[str, int]


def _users(table: BlockTable) -> dict[str, _Users]:
    users: dict[str, _Users] = {}
    for block, source in _sources(table):
        place = str(source.path), source.offset
        found = users.setdefault(source.name, _Users(set(), place))
        found.blocks.add(block)
        found.first = min(found.first, place)
    return users


def _sources(table: BlockTable) -> Iterator[tuple[str, StoredTensor]]:
    yield from ((EMBED, source) for source in table.lookups.values())
    yield from ((REST, source) for source in _block_sources(table.rest))
    yield from ((block.name, source) for block in table.layers for source in _block_sources(block))
    yield from ((HEAD, source) for block in table.heads for source in _block_sources(block))


def _block_sources(block: Block) -> Iterator[StoredTensor]:
    for recipe in block.recipes:
        yield from sources_of(recipe)


def _part_of(users: _Users) -> str:
    if EMBED in users.blocks and users.blocks <= {EMBED, HEAD}:
        return EMBED
    return next(iter(users.blocks)) if len(users.blocks) == 1 else REST
