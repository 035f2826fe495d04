"""What workers keep of a model: their share of it, whole, fetched once."""

import asyncio
import errno
import os
import random
import re
from concurrent.futures import CancelledError

import pytest

from layermesh.readying import Readying
from layermesh.shared.errors import CheckpointError
from layermesh.shared.parts import CHUNK_BYTES
from layermesh.shared.spans import LayerSpan
from layermesh.worker import preparing, service
from layermesh.worker.own_models import find_own
from layermesh.worker.part_writer import PARTIAL_SUFFIX
from tests.mesh.meshes import answer_alone, ask, machines, open_mesh
from tests.shared.packing.packs import build_llama

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of which a part is several chunks."""
    return build_llama(tmp_path_factory.mktemp("model") / "large", vocab=4000, hidden=512)


@pytest.fixture
def fetched(monkeypatch):
    """The bytes that each preparation of all workers fetched, in the order of the workers."""
    seen = []
    prepare = Readying.prepare

    def note(workers, *arguments):
        ready = prepare(workers, *arguments)
        seen.append([one.fetched_bytes for one in ready])
        return ready

    monkeypatch.setattr(Readying, "prepare", note)
    return seen


def test_a_store_holds_the_parts_of_its_span_and_no_more(model, loopback, fetched):
    workers = loopback.add(3)
    with open_mesh(model, workers) as mesh:
        answer, manifest = ask(mesh), mesh.local.manifest
    assert answer.token_ids == answer_alone(model)
    assert machines(answer) == ["w0", "w1", "w2", "local"]
    for worker, stage, num_bytes in zip(workers, answer.plan.stages, *fetched, strict=False):
        parts = manifest.parts_for(LayerSpan(stage.start, stage.end), with_head=False, with_embeddings=stage.start == 0)
        (summary,) = worker.store.models()
        weights = sum(map(manifest.part_bytes, parts))
        assert set(summary.parts) == set(parts)
        assert weights < summary.num_bytes < weights + 20_000
        assert num_bytes == weights + len(manifest.to_bytes())


def test_what_is_there_is_not_fetched_again(model, loopback, fetched):
    workers = loopback.add(2)
    for restart in (False, False, True):
        for worker in workers if restart else ():
            worker.stop()
            worker.start()
        with open_mesh(model, workers) as mesh:
            ask(mesh)
    assert min(fetched[0]) > 0
    assert fetched[1:] == [[0, 0], [0, 0]]


def test_a_worker_that_has_the_model_itself_fetches_nothing(model, loopback, fetched, monkeypatch):
    monkeypatch.setattr(preparing, "find_own", find_own)
    workers = loopback.add(2)
    with open_mesh(model, workers) as mesh:
        assert ask(mesh).token_ids == answer_alone(model)
    assert [worker.store.models() for worker in workers] == [[], []]
    assert fetched == [[0, 0]]


def test_workers_fetch_from_each_other(model, loopback, fetched, monkeypatch):
    first, second = loopback.add(2)
    with open_mesh(model, [first]) as mesh:
        ask(mesh)
    asked = []
    read = Readying._read
    monkeypatch.setattr(Readying, "_read", lambda workers, part, offset: asked.append(part) or read(workers, part, offset))
    with open_mesh(model, [first, second]) as mesh:
        assert ask(mesh).token_ids == answer_alone(model)
    assert fetched[1][0] == 0 < fetched[1][1]
    assert asked == ["manifest"]


def test_a_worker_that_has_damaged_its_part_hands_on_nothing_of_it(model, loopback):
    first, second = loopback.add(2)
    with open_mesh(model, [first]) as mesh:
        ask(mesh)
    flip_a_bit(first, "layer-2.weights")
    with open_mesh(model, [first, second]) as mesh:  # it comes from the coordinator, then
        assert ask(mesh).token_ids == answer_alone(model)


def test_the_model_that_was_used_longest_ago_makes_room(tmp_path, loopback):
    (worker,) = loopback.add(1, limit_bytes=20 << 20)
    models = [build_llama(tmp_path / name, vocab=2000, hidden=512 - 16 * number) for number, name in enumerate("abc")]
    for model in (models[0], models[1], models[0], models[2]):
        with open_mesh(model, [worker]) as mesh:
            ask(mesh)
    assert [summary.name for summary in worker.store.models()] == [str(models[0]), str(models[2])]
    assert sum(summary.num_bytes for summary in worker.store.models()) <= 20 << 20


def test_a_model_in_use_makes_no_room(tmp_path, loopback):
    (worker,), said = loopback.add(1, limit_bytes=10 << 20), []
    one, other = (build_llama(tmp_path / name, vocab=1000, hidden=hidden) for name, hidden in (("a", 512), ("b", 496)))
    with open_mesh(one, [worker]) as mesh:
        ask(mesh)
        with open_mesh(other, [worker], tell=said.append) as second:
            assert machines(ask(second)) == ["local"]
            assert any(re.search(r"worker w0: no room in .*needed, .*free", told) for told in said), said
            mesh.close()
            answer = ask(second)
            assert (answer.token_ids, machines(answer)) == (answer_alone(other), ["w0", "local"])
    assert [summary.name for summary in worker.store.models()] == [str(other)]


class Cut:
    """Reads parts for a worker until `left` bytes have been read, then calls `cut`."""

    def __init__(self, read, left, cut):
        self.read, self.left, self.cut = read, left, cut

    def __call__(self, part, offset):
        reading = self.read(part, offset)
        if part == "manifest":
            return reading
        return self.Reading(self, reading)

    class Reading:
        def __init__(self, cut, reading):
            self.of, self.reading = cut, reading

        def __iter__(self):
            for chunk in self.reading:
                self.of.left -= len(chunk)
                if self.of.left < 0:
                    self.of.cut()
                yield chunk

        @property
        def sha256(self):
            return self.reading.sha256


def unplugged():
    raise CheckpointError("the disk was unplugged")


@pytest.mark.parametrize("how", ["reading fails", "the coordinator goes away"])
def test_a_transfer_that_was_cut_goes_on_where_it_was(model, loopback, fetched, monkeypatch, how):
    arrived = []
    want = service._Caller.want

    async def counting(caller, part, offset):
        async for chunk in want(caller, part, offset):
            arrived.append(len(chunk.data))
            yield chunk

    monkeypatch.setattr(service._Caller, "want", counting)
    (worker,) = loopback.add(1)
    choose = random.Random(7)
    num_cuts = 0
    for _ in range(12):
        with open_mesh(model, [worker]) as mesh:
            read, loop = mesh.workers._readying._read, mesh.workers._registry.loop

            def go_away(loop=loop):
                for task in asyncio.all_tasks(loop.loop):
                    if "prepare" in repr(task.get_coro()):
                        loop.loop.call_soon_threadsafe(task.cancel)

            cut = Cut(read, choose.randrange(2 * CHUNK_BYTES), unplugged if how == "reading fails" else go_away)
            monkeypatch.setattr(mesh.workers._readying, "_read", cut)
            try:
                ask(mesh)
            except (CheckpointError, asyncio.CancelledError, CancelledError):
                num_cuts += 1
    with open_mesh(model, [worker]) as mesh:
        assert ask(mesh).token_ids == answer_alone(model)
        manifest = mesh.local.manifest
    assert num_cuts >= 10
    (summary,) = worker.store.models()
    needed = sum(map(manifest.part_bytes, summary.parts)) + len(manifest.to_bytes())
    assert sum(arrived) <= needed + num_cuts * CHUNK_BYTES


def flip_a_bit(worker, file):
    (path,) = worker.folder.rglob(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_flipped_bit_is_found_before_use_and_the_part_fetched_again(model, loopback, fetched):
    workers = loopback.add(2)
    with open_mesh(model, workers) as mesh:
        ask(mesh)
        manifest = mesh.local.manifest
    workers[0].stop()
    flip_a_bit(workers[0], "layer-0.weights")
    workers[0].start()
    with open_mesh(model, workers) as mesh:
        assert ask(mesh).token_ids == answer_alone(model)
    assert fetched[1] == [manifest.part_bytes("layer 0"), 0]


def test_a_worker_with_damage_that_cannot_be_mended_is_named_and_done_without(model, loopback, monkeypatch):
    (worker,), said = loopback.add(1), []
    with open_mesh(model, [worker]) as mesh:
        ask(mesh)
    worker.stop()
    flip_a_bit(worker, "layer-0.weights")
    worker.start()
    monkeypatch.setattr("layermesh.worker.stored_model.StoredModel.drop_damaged", lambda *_: ())
    with open_mesh(model, [worker], tell=said.append) as mesh:
        answer = ask(mesh)
    assert (answer.token_ids, machines(answer)) == (answer_alone(model), ["local"])
    assert any(re.search(r"worker w0: .*layer-0.* damaged.*Delete", told) for told in said), said


def test_a_full_disk_is_named_and_nothing_half_is_used(model, loopback, monkeypatch):
    (worker,), said, written = loopback.add(1), [], []
    write = os.pwrite

    def fill(descriptor, data, offset):
        written.append(len(data))
        if sum(written) > 3 * CHUNK_BYTES:
            raise OSError(errno.ENOSPC, "no space")
        return write(descriptor, data, offset)

    with open_mesh(model, [worker], tell=said.append) as mesh:
        with monkeypatch.context() as patch:
            patch.setattr("layermesh.worker.chunk_file.os.pwrite", fill)
            assert machines(ask(mesh)) == ["local"]
        assert any(re.search(rf"worker w0: no room in {worker.folder}.* needed, .* free", told) for told in said), said
        assert not list(worker.folder.rglob(f"*{PARTIAL_SUFFIX}"))
        (summary,) = worker.store.models()
        before = set(summary.parts)
        assert ask(mesh).token_ids == answer_alone(model)
        (summary,) = worker.store.models()
        assert before < set(summary.parts)
