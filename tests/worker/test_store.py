import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from layermesh.shared.block_hashes import TABLE, BlockTableFile
from layermesh.shared.checkpoints import row_bytes
from layermesh.shared.errors import CheckpointError, DiskFullError
from layermesh.shared.fingerprint import TensorEntry, fingerprint
from layermesh.shared.library import disk
from layermesh.shared.manifest import Manifest
from layermesh.shared.part_source import PartSource
from layermesh.shared.parts import CHUNK_BYTES
from layermesh.shared.spans import LayerSpan
from layermesh.worker.files import FileReader
from layermesh.worker.part_writer import PARTIAL_SUFFIX
from layermesh.worker.store import Store, StoredSummary, choose_evictions
from layermesh.worker.stored_model import MANIFEST, StoredModel
from tests.architectures.runs import difference
from tests.running import wait_until
from tests.storing import KINDS, Described, all_parts, answer, example, fetch

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def stored(store: Store, described: Described) -> tuple[StoredModel, PartSource]:
    """The model, all of it fetched, and where it came from."""
    model, source = store.add(described.manifest), PartSource(described.checkpoint, described.manifest)
    fetch(model, source, all_parts(described.manifest))
    return model, source


@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_stored_parts_answer_as_the_original_to_the_bit(tmp_path, kind):
    described = example(kind)
    manifest, source = described.manifest, PartSource(described.checkpoint, described.manifest)
    last = manifest.num_layers
    spans = [LayerSpan(0, 1), LayerSpan(1, last), LayerSpan(last, last)]
    checkpoints = []
    for number, span in enumerate(spans):
        model = Store(tmp_path / f"{number}").add(manifest)
        parts = manifest.parts_for(span, with_head=span == spans[-1], with_embeddings=span.start == 0)
        assert model.missing_bytes(parts) == fetch(model, source, parts)
        assert model.missing(parts) == ()
        assert set(model.missing(manifest.parts)) == set(manifest.parts) - set(parts)
        checkpoints.append(model.checkpoint())
    whole = answer([described.checkpoint], [LayerSpan(0, last)], described.dtype)
    assert difference(answer(checkpoints, spans, described.dtype), whole) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_handed_on_as_it_came(store, kind):
    model, source = stored(store, example(kind))
    for part in example(kind).manifest.parts:
        original, copy = source.read(part), model.read(part)
        assert b"".join(original) == b"".join(copy)
        assert original.sha256 == copy.sha256
        later = model.read(part, 100)
        assert len(b"".join(later)) == model.manifest.part_bytes(part) - 100
        assert later.sha256 == copy.sha256


def test_a_store_holds_what_was_fetched_and_a_later_run_finds_it(store):
    described = example("tied")
    _, source = stored(store, described)
    assert store.has(described.manifest.fingerprint)
    again = Store(store.folder).get(described.manifest.fingerprint)
    assert again.manifest == described.manifest
    assert fetch(again, source, all_parts(described.manifest)) == 0
    assert fetch(store.add(described.manifest), source, all_parts(described.manifest)) == 0
    (summary,) = store.models()
    assert (summary.fingerprint, summary.name) == (described.manifest.fingerprint, described.manifest.name)
    assert set(summary.parts) == set(described.manifest.parts)
    weights = sum(map(described.manifest.part_bytes, described.manifest.parts))
    assert weights < summary.num_bytes < weights + 20_000


def test_twenty_cuts_fetch_at_most_a_chunk_again_each(store):
    described = example("tied")
    source, part = PartSource(described.checkpoint, described.manifest), "embed"
    model, total = store.add(described.manifest), described.manifest.part_bytes(part)
    assert total > CHUNK_BYTES
    choose = random.Random(4)
    fetched = 0
    for _ in range(20):
        cut = choose.randrange(total)
        with model.receiving(part) as writer:
            assert writer.offset % CHUNK_BYTES == 0
            fetched += send_up_to(writer, source, cut, choose)
        assert model.missing([part]) == (part,)
    assert fetch(model, source, [part]) + fetched <= total + 20 * CHUNK_BYTES
    assert model.missing([part]) == ()


def send_up_to(writer, source: PartSource, end: int, choose: random.Random) -> int:
    sent = 0
    for chunk in source.read(writer.part, writer.offset):
        taken = min(len(chunk), max(end - writer.offset, 0))
        middle = choose.randint(0, taken)
        for piece in (chunk[:middle], memoryview(chunk)[middle:taken]):
            writer.write(piece)
            sent += len(piece)
    return sent


KILLED = """
import os, sys
from pathlib import Path
from layermesh.worker.store import Store
folder, fingerprint, part, data, moment = sys.argv[1:]
model = Store(Path(folder)).get(fingerprint)
content = Path(data).read_bytes()
end = lambda *_: os._exit(9)
import layermesh.worker.part_writer as writing, layermesh.worker.stored_model as storing
import hashlib
with model.receiving(part) as writer:
    writer.write(content[writer.offset : len(content) * 2 // 3] if moment == "writing" else content[writer.offset :])
    if moment == "writing":
        end()
    if moment == "before the table":
        writer._keep = end
    if moment == "within the table":
        storing.flush_folder = end
    if moment == "before the name":
        Path.replace = lambda self, target: end() if str(target).endswith(".weights") else os.replace(self, target)
    writer.finish(hashlib.sha256(content).digest())
"""


@pytest.mark.parametrize("moment", ["writing", "before the table", "within the table", "before the name", "never"])
def test_a_worker_killed_at_any_moment_goes_on(store, tmp_path, moment):
    described, part = example("tied"), "embed"
    source = PartSource(described.checkpoint, described.manifest)
    store.add(described.manifest)
    data = tmp_path / "data"
    data.write_bytes(b"".join(source.read(part)))
    arguments = [str(store.folder), described.manifest.fingerprint, part, str(data), moment]
    child = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, cwd=Path(__file__).parents[2])
    assert child.returncode == (0 if moment == "never" else 9)
    later = Store(store.folder).get(described.manifest.fingerprint)
    assert later.missing([part]) == (() if moment == "never" else (part,))
    fetched = fetch(later, source, [part])
    assert fetched <= (len(data.read_bytes()) // 3 + CHUNK_BYTES if moment == "writing" else 0)
    assert b"".join(later.read(part)) == data.read_bytes()


def test_a_part_that_came_damaged_is_not_kept(store):
    described, part = example("safetensors"), "layer 1"
    model, source = store.add(described.manifest), PartSource(described.checkpoint, described.manifest)
    reading = source.read(part)
    content = bytearray(b"".join(reading))
    content[1000] ^= 1
    with model.receiving(part) as writer:
        writer.write(content)
        with pytest.raises(CheckpointError, match=r"layer 1 .*damaged.*fetched again"):
            writer.finish(reading.sha256)
    assert model.missing([part]) == (part,)
    with model.receiving(part) as writer:
        assert writer.offset == 0
    assert fetch(model, source, [part]) == len(content)


def test_a_part_that_another_machine_divides_otherwise_is_not_kept(store):
    """Its hash is right, and its tensors lie elsewhere."""
    described = example("safetensors")
    names = described.manifest.parts["layer 1"]
    turned = Manifest(**{**fields(described.manifest), "parts": {**described.manifest.parts, "layer 1": names[::-1]}})
    reading = PartSource(described.checkpoint, turned).read("layer 1")
    content = b"".join(reading)
    model = store.add(described.manifest)
    with model.receiving("layer 1") as writer:
        if len(content) == writer.num_bytes:
            writer.write(content)
            with pytest.raises(CheckpointError, match="damaged"):
                writer.finish(reading.sha256)


def fields(manifest: Manifest) -> dict:
    return {name: getattr(manifest, name) for name in Manifest.__slots__}


def test_a_description_that_divides_otherwise_drops_what_it_changes(store):
    described = example("safetensors")
    stored(store, described)
    names = described.manifest.parts["layer 1"]
    turned = Manifest(**{**fields(described.manifest), "parts": {**described.manifest.parts, "layer 1": names[::-1]}})
    model = store.add(turned)
    assert model.missing(turned.parts) == ("layer 1",)
    assert store.get(turned.fingerprint).manifest == turned
    fetch(model, PartSource(described.checkpoint, turned), ["layer 1"])
    last = turned.num_layers
    whole = answer([described.checkpoint], [LayerSpan(0, last)], described.dtype)
    assert difference(answer([model.checkpoint()], [LayerSpan(0, last)], described.dtype), whole) == ""


def test_more_and_less_than_a_part_are_refused(store):
    described, part = example("safetensors"), "layer 1"
    model, source = store.add(described.manifest), PartSource(described.checkpoint, described.manifest)
    content = b"".join(source.read(part))
    with model.receiving(part) as writer:
        with pytest.raises(CheckpointError, match="more came"):
            writer.write(content + b"x")
        writer.write(content[:-1])
        with pytest.raises(CheckpointError, match="only"):
            writer.finish(b"")
    assert model.missing([part]) == (part,)


def test_every_flipped_bit_is_found_before_use_and_can_be_mended(store):
    described = example("safetensors")
    model, source = stored(store, described)
    choose = random.Random(1)
    for _ in range(200):
        part = choose.choice(list(described.manifest.parts))
        (placed, *_) = described.manifest.layout(part)
        tensor = model.checkpoint().tensors[placed.name]
        original = tensor.path.read_bytes()
        damaged = bytearray(original)
        damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        tensor.path.write_bytes(damaged)
        files = FileReader()
        with pytest.raises(CheckpointError, match="damaged"):
            files.read_into(tensor.path, tensor.offset, memoryview(bytearray(tensor.num_bytes)))
        files.close()
        with pytest.raises(CheckpointError, match="damaged"):
            list(model.read(part))
        tensor.path.write_bytes(original)
    tensor.path.write_bytes(damaged)
    assert model.drop_damaged(described.manifest.parts) == (part,)
    assert model.missing(described.manifest.parts) == (part,)
    fetch(model, source, [part])
    assert tensor.path.read_bytes() == original


@pytest.mark.parametrize("file", [MANIFEST, TABLE, "config/config.json"])
def test_a_damaged_description_is_made_again(store, file):
    described = example("safetensors")
    model, source = stored(store, described)
    content = bytearray((model.folder / file).read_bytes())
    content[40] ^= 255
    (model.folder / file).write_bytes(content)
    again = store.get(described.manifest.fingerprint)
    if file in (MANIFEST, TABLE):
        assert again is None or again.missing(described.manifest.parts)
        again = store.add(described.manifest)
        fetch(again, source, again.missing(described.manifest.parts))
    checkpoint = again.checkpoint()
    assert (checkpoint.config_dir / "config.json").read_bytes() == described.manifest.files["config.json"]
    span = LayerSpan(0, described.manifest.num_layers)
    assert (
        difference(answer([checkpoint], [span], described.dtype), answer([described.checkpoint], [span], described.dtype)) == ""
    )


def test_a_part_that_is_not_here_cannot_be_read(store):
    described = example("safetensors")
    model, source = store.add(described.manifest), PartSource(described.checkpoint, described.manifest)
    fetch(model, source, ["rest"])
    tensor = model.checkpoint().tensors["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layer-2.weights is not complete, or was never stored"):
        FileReader().read_into(tensor.path, tensor.offset, memoryview(bytearray(4)))
    for part in ("layer 2", "../x"):
        with pytest.raises(CheckpointError, match="not here"):
            model.read(part)
    with pytest.raises(ValueError, match="has no part"), model.receiving("../x"):
        pass


def test_a_full_disk_is_said_and_leaves_nothing(store, monkeypatch):
    described = example("tied")
    model, source = store.add(described.manifest), PartSource(described.checkpoint, described.manifest)
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1000)
    with pytest.raises(DiskFullError) as refusal, model.receiving("embed"):
        pass
    assert (refusal.value.path, refusal.value.needed_bytes) == (model.folder, described.manifest.part_bytes("embed"))
    monkeypatch.undo()
    with pytest.raises(DiskFullError):
        fill_up(model, source, monkeypatch)
    monkeypatch.undo()
    assert not list(model.folder.glob(f"*{PARTIAL_SUFFIX}"))
    assert fetch(model, source, ["embed"]) == described.manifest.part_bytes("embed")


def fill_up(model: StoredModel, source: PartSource, monkeypatch: pytest.MonkeyPatch) -> None:
    with model.receiving("embed") as writer:
        monkeypatch.setattr(os, "pwrite", no_room)
        for chunk in source.read("embed"):
            writer.write(chunk)
        writer.finish(bytes(32))


def no_room(*_):
    raise OSError(28, "No space left on device")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_told_with_its_numbers(small_disk):
    described = example("tied")
    model, source = Store(small_disk / "store").add(described.manifest), PartSource(described.checkpoint, described.manifest)
    (small_disk / "other").write_bytes(bytes(100_000))
    with pytest.raises(DiskFullError, match="no room in") as refusal:
        fetch(model, source, all_parts(described.manifest))
    assert refusal.value.needed_bytes > refusal.value.free_bytes
    assert not list(model.folder.glob(f"*{PARTIAL_SUFFIX}"))


def made_up(number: int) -> Manifest:
    """The description of a model with one tensor of 3 MiB."""
    described = example("safetensors").manifest
    tensors = {"x": TensorEntry("U8", (3 << 20,), 3 * row_bytes("U8", 1 << 20), bytes([number] * 16))}
    return Manifest(
        fingerprint(described.files, tensors, None), f"model {number}", None, described.files, tensors,
        {"rest": ("x",)}, {"rest": ("rest",), "embed": (), "head": ()},
    )  # fmt: skip


@pytest.fixture
def three(tmp_path):
    """A store of three models, used in order, of 3 MiB each and some small files."""
    store = Store(tmp_path / "store", 10 << 20)
    manifests = [made_up(number) for number in range(3)]
    for number, manifest in enumerate(manifests):
        model = store.add(manifest)
        (model.folder / "rest.weights").write_bytes(bytes(3 << 20))
        os.utime(model.folder, (1000 + number, 1000 + number))
    return store, [manifest.fingerprint for manifest in manifests]


def left(store: Store) -> list[str]:
    return [model.fingerprint for model in store.models()]


def test_the_model_used_longest_ago_makes_room(three):
    store, (first, second, third) = three
    store.make_room(100_000)
    assert left(store) == [first, second, third]
    store.make_room(2 << 20)
    assert left(store) == [second, third]
    with store.in_use(second):
        pass
    assert left(store) == [third, second]
    store.make_room(3 << 20)
    assert left(store) == [third, second]
    store.make_room(6 << 20)
    assert left(store) == [second]


def test_models_in_use_and_those_to_keep_stay(three):
    store, (first, _, third) = three
    elsewhere = Store(store.folder, store.limit_bytes)
    with elsewhere.in_use(first), pytest.raises(DiskFullError) as refusal:
        store.make_room(5 << 20, keep=[third])
    assert refusal.value.needed_bytes == 5 << 20
    assert 3 << 20 < refusal.value.free_bytes < 5 << 20
    assert len(left(store)) == 3, "nothing is removed in vain"
    with elsewhere.in_use(first):
        os.utime(store.folder / first, (1, 1))
        assert not store.remove(first)
        store.make_room(2 << 20)
        assert set(left(store)) == {first, third}


def test_the_disk_limits_as_well(three, monkeypatch):
    store, (_, second, third) = three
    unlimited = Store(store.folder)
    monkeypatch.setattr("layermesh.worker.store.free_bytes", lambda _folder: 1 << 20)
    unlimited.make_room(2 << 20)
    assert left(store) == [second, third]
    with pytest.raises(DiskFullError):
        unlimited.make_room(8 << 20)
    assert left(store) == [second, third]


def test_evictions_are_no_more_than_needed():
    models = [StoredSummary(f"{number}", "", 10, (), float(number)) for number in range(4)]
    assert [model.fingerprint for model in choose_evictions(models, 11)] == ["0", "1"]
    assert choose_evictions(models, 0) == choose_evictions(models, -5) == []
    assert choose_evictions(models, 1000) == models


@pytest.mark.parametrize("fingerprint", ["", "..", "A" * 64, "0" * 63, "0" * 64 + "\n", "../" * 20])
def test_only_fingerprints_become_folders(store, fingerprint):
    for act in (store.has, store.get, store.remove):
        with pytest.raises(CheckpointError, match="fingerprint"):
            act(fingerprint)
    with pytest.raises(CheckpointError), store.in_use(fingerprint):
        pass
    assert not store.has("0" * 64)
    assert store.models() == []


def test_what_was_removed_meanwhile_is_said(store):
    described = example("safetensors")
    model = store.add(described.manifest)
    assert store.remove(described.manifest.fingerprint)
    with pytest.raises(CheckpointError, match="removed"), model.receiving("rest"):
        pass
    assert store.models() == []


def test_two_who_fetch_the_same_part_get_it_once(store):
    described, part = example("safetensors"), "layer 1"
    source = PartSource(described.checkpoint, described.manifest)
    store.add(described.manifest)
    began, ended = threading.Event(), []

    def second():
        model = Store(store.folder).get(described.manifest.fingerprint)
        began.set()
        with model.receiving(part) as writer:
            ended.append((writer.offset, writer.num_bytes))
            writer.finish(b"whatever")

    model = store.get(described.manifest.fingerprint)
    with model.receiving(part) as writer:
        other = threading.Thread(target=second)
        other.start()
        wait_until(began.is_set)
        reading = source.read(part)
        for chunk in reading:
            writer.write(chunk)
        assert ended == []
        writer.finish(reading.sha256)
    other.join(10)
    assert ended == [(described.manifest.part_bytes(part),) * 2]
    assert set(BlockTableFile.read(model.folder / TABLE).files) == {"layer-1.weights"}


def test_what_an_eviction_left_behind_is_not_trusted(store):
    described = example("safetensors")
    model, _ = stored(store, described)
    (model.folder / MANIFEST).unlink()
    assert not store.has(described.manifest.fingerprint)
    assert len(store.models()) == 1
    again = store.add(described.manifest)
    assert set(again.missing(described.manifest.parts)) == set(described.manifest.parts)
    assert not list(again.folder.glob("*.weights"))
