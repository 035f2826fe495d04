"""Making a span ready: find out what the model is, fetch what is lacking, open the stage."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

import grpc.aio
import torch

from layermesh.protos import mesh_pb2 as pb
from layermesh.protos.mesh_pb2_grpc import WorkerServiceStub
from layermesh.shared.allocator import keeping_memory
from layermesh.shared.channels import Channels
from layermesh.shared.checkpoints import Checkpoint
from layermesh.shared.errors import AuthenticationError, BusyError, CheckpointError, MeshError, UsageError
from layermesh.shared.manifest import MAX_MANIFEST_BYTES, Manifest
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.embedding_use import needs_embeddings_everywhere
from layermesh.shared.protocol import MANIFEST, PROTOCOL_VERSION
from layermesh.shared.stage_key import StageKey
from layermesh.worker.finishing import to_its_end
from layermesh.worker.host import Host, LiveStage
from layermesh.worker.limits import usable_sources
from layermesh.worker.measuring_turn import at_work
from layermesh.worker.opening import StageBudget, define, open_stage
from layermesh.worker.own_models import find_own
from layermesh.worker.patience import without_silence
from layermesh.worker.stage import Stage
from layermesh.worker.store import Store, StoredModel
from layermesh.worker.write_behind import WriteBehind

NUM_TRIES = 2  # of a part that comes damaged
TOLD_BYTES = 4 << 20  # that come between two words about it


class Coordinator(Protocol):
    """Whoever asked for a span: has every part of the model, and wants to know how far things are."""

    def want(self, part: str, offset: int) -> AsyncIterator[pb.Chunk]:
        """Ask for a part from `offset` on; the last chunk has the hash of the whole."""
        ...

    def progress(self, done_bytes: int, total_bytes: int, doing: str) -> None:
        """Say how far it is."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage that is ready, and how many bytes had to be fetched for it."""

    stage: LiveStage
    fetched_bytes: int


class Preparer:
    """Makes spans ready on `host`, from what `store` keeps, what lies on this machine anyway, and what others send."""

    def __init__(self, host: Host, store: Store, channels: Channels) -> None:
        self._host = host
        self._channels = channels
        self._store = store
        self._own: dict[str, Checkpoint] = {}
        self._lock = asyncio.Lock()

    async def prepare(self, start: pb.PrepareStart, coordinator: Coordinator) -> Prepared:
        """Return the stage that `start` asks for.

        Raises what opening a model raises, DiskFullError, BudgetError, and MeshError where what is lacking does not come.
        """
        key = StageKey.parse(start.key)
        if self._lock.locked():
            coordinator.progress(0, 0, "waiting until another model is ready")
        async with self._lock:
            if start.most_bytes:
                await self._host.close_larger(key, start.most_bytes)
            if (live := self._host.find(key)) is not None:
                return Prepared(await self._host.open(key, live.model, _no_opening), 0)
            checkpoint = await self._find_own(start)
            if checkpoint is not None:
                return Prepared(await self._open(key, start, checkpoint), 0)
            stored, manifest_bytes = await self._stored(key, coordinator)
            with self._store.in_use(key.fingerprint):
                return await self._open_stored(start, key, stored, manifest_bytes, coordinator)

    async def _open_stored(
        self, start: pb.PrepareStart, key: StageKey, stored: StoredModel, manifest_bytes: int, coordinator: Coordinator
    ) -> Prepared:
        """Open a stage of what is stored, once nothing is lacking; what the disk has damaged is fetched again, once."""
        checkpoint, files = stored.checkpoint(), self._store.in_use(key.fingerprint)
        made = await asyncio.to_thread(define, checkpoint, _dtype(key), fast_path=key.fast_path)
        parts = _parts(key, stored, made[0])
        fetched = manifest_bytes + await self._fetch(key, stored, parts, coordinator, start.sources)
        try:
            return Prepared(await self._open(key, start, checkpoint, made, files), fetched)
        except CheckpointError:
            if not await asyncio.to_thread(stored.drop_damaged, parts):
                raise
        fetched += await self._fetch(key, stored, parts, coordinator, start.sources)
        return Prepared(await self._open(key, start, checkpoint, None, self._store.in_use(key.fingerprint)), fetched)

    async def _find_own(self, start: pb.PrepareStart) -> Checkpoint | None:
        fingerprint = start.key.fingerprint
        found = self._own.get(fingerprint)
        if found is None:  # it may have been fetched since
            found = await asyncio.to_thread(find_own, start.model, start.revision or None, fingerprint)
            if found is not None:
                self._own[fingerprint] = found
        return found

    async def _stored(self, key: StageKey, coordinator: Coordinator) -> tuple[StoredModel, int]:
        """Return what is stored of the model, and how many bytes it took to learn what model that is."""
        stored = await asyncio.to_thread(self._store.get, key.fingerprint)
        if stored is not None:
            return stored, 0
        coordinator.progress(0, 0, "learning what model it is")
        data = bytearray()
        async for chunk in coordinator.want(MANIFEST, 0):
            data += chunk.data
            if len(data) > MAX_MANIFEST_BYTES:
                raise MeshError("what should describe a model is larger than any description.")
        manifest = Manifest.parse(bytes(data))
        if manifest.fingerprint != key.fingerprint:
            raise MeshError("the coordinator described another model than the one it asked for.")
        return await asyncio.to_thread(self._store.add, manifest), len(data)

    async def _fetch(
        self,
        key: StageKey,
        stored: StoredModel,
        parts: Sequence[str],
        coordinator: Coordinator,
        sources: Sequence[str],
    ) -> int:
        """Fetch those of `parts` that are lacking, and return how many bytes that took."""
        missing = stored.missing(parts)
        if not missing:
            return 0
        total_bytes = stored.missing_bytes(missing)
        await self._host.close_unused()
        await asyncio.to_thread(self._store.make_room, total_bytes, [key.fingerprint])
        fetched = 0
        with ExitStack() as held:
            await asyncio.to_thread(held.enter_context, at_work())
            held.enter_context(keeping_memory())
            for part in missing:

                def tell(num_bytes: int, part: str = part, before: int = fetched) -> None:
                    coordinator.progress(before + num_bytes, total_bytes, f"fetching {part}")

                fetched += await self._fetch_part(stored, part, coordinator, sources, tell)
        return fetched

    async def _fetch_part(
        self,
        stored: StoredModel,
        part: str,
        coordinator: Coordinator,
        sources: Sequence[str],
        tell: Callable[[int], None],
    ) -> int:
        for address in usable_sources(sources):
            try:
                fetch = _fetch_from(self._channels, address, stored.manifest.fingerprint, part)
                return await _receive(stored, part, fetch, tell)
            except (grpc.aio.AioRpcError, CheckpointError, MeshError, AuthenticationError, UsageError):
                continue  # it has not got it, or it went away: the next one, and at last the coordinator
        for number in range(NUM_TRIES):
            try:
                return await _receive(stored, part, lambda offset: coordinator.want(part, offset), tell)
            except CheckpointError:
                if number + 1 == NUM_TRIES:
                    raise
        raise AssertionError

    async def _open(
        self,
        key: StageKey,
        start: pb.PrepareStart,
        checkpoint: Checkpoint,
        made: tuple[ModelDefinition, BlockTable] | None = None,
        files: AbstractContextManager[object] | None = None,
    ) -> LiveStage:
        def opening(budget: StageBudget) -> Stage:
            definition, table = made or define(checkpoint, _dtype(key), fast_path=key.fast_path)
            _check_span(key, start.model, definition.num_layers)
            return open_stage(checkpoint, definition, table, key.span, self._host.device, budget, has_head=key.has_head)

        return await self._host.open(key, start.model, opening, files, start.most_bytes or None)


def _parts(key: StageKey, stored: StoredModel, definition: ModelDefinition) -> tuple[str, ...]:
    """What a stage of `key` is made of; raises MeshError where the model has no such layers."""
    _check_span(key, stored.manifest.name, stored.manifest.num_layers)
    everywhere = key.span.start == 0 or needs_embeddings_everywhere(definition)
    return stored.manifest.parts_for(key.span, with_head=key.has_head, with_embeddings=everywhere)


def _check_span(key: StageKey, model: str, num_layers: int) -> None:
    if key.span.end > num_layers or (key.has_head and key.span.end < num_layers):
        raise MeshError(f"{model} has {num_layers} layers and was to run {key.span} here.")


async def _receive(
    stored: StoredModel, part: str, source: Callable[[int], AsyncIterator[pb.Chunk]], tell: Callable[[int], None]
) -> int:
    """Write what `source` sends of a part, from where an earlier try ended, and return how many bytes came."""
    with stored.receiving(part) as writer:
        fetched, told, sha256 = 0, 0, b""
        async with WriteBehind() as writing:
            async for chunk in source(writer.offset):
                data, sha256 = chunk.data, chunk.sha256  # a copy of it, each time it is looked at
                await writing.put(writer.write, data)
                fetched += len(data)
                if fetched - told >= TOLD_BYTES or sha256:
                    tell(fetched)
                    told = fetched
        await to_its_end(asyncio.to_thread(writer.finish, sha256))
        return fetched


def _fetch_from(channels: Channels, address: str, fingerprint: str, part: str) -> Callable[[int], AsyncIterator[pb.Chunk]]:
    async def chunks(offset: int) -> AsyncIterator[pb.Chunk]:
        request = pb.FetchRequest(version=PROTOCOL_VERSION, fingerprint=fingerprint, part=part, offset=offset)
        async with channels.open(address) as channel:
            async for response in without_silence(WorkerServiceStub(channel).Fetch(request), f"the worker at {address}"):
                yield response.chunk

    return chunks


def _dtype(key: StageKey) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, key.dtype)
    return dtype


def _no_opening(_budget: StageBudget) -> Stage:
    raise BusyError("the stage was closed a moment ago. Ask again.")
