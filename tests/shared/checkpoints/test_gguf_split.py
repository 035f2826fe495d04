"""GGUF models in several files: read as the same model in one, and refused by name where the pieces do not belong together."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_models import LLAMA, MODELS
from gguf_writing import read_raw, write_gguf
from transformers import AutoConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from layermesh.shared.checkpoints import gguf, open_gguf
from layermesh.shared.checkpoints.gguf_split import find_pieces, read_gguf
from layermesh.shared.errors import CheckpointError
from layermesh.shared.packing.request import Source
from layermesh.shared.unpacked import sweep_unpacked

TOKENS = [*bytes_to_unicode().values(), "ab", "abc"]
ENCODINGS = ("Q4_0", "F16", "Q8_0")


def write(path: Path, architecture: str = "llama", piece_tensors: int = 7) -> Path:
    arch, metadata, shapes = MODELS[architecture]
    return write_gguf(path, arch, metadata, shapes, ENCODINGS, TOKENS, piece_tensors)


def values(path: Path) -> dict[str, bytes]:
    return {
        name: read_raw(each.path, each.offset, each.num_bytes).numpy().tobytes()
        for name, each in read_gguf(path).tensors.items()
    }


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "lfm2", "gemma2"])
def test_pieces_are_the_same_model_as_one_file(tmp_path, architecture):
    whole, first = write(tmp_path / "whole.gguf", architecture, 0), write(tmp_path / "model.gguf", architecture)
    assert len(find_pieces(first)) > 2
    assert values(first) == values(whole)
    one, many = (open_gguf(path, tmp_path / "cache") for path in (whole, first))
    assert (many.config_dir / "config.json").read_text() == (one.config_dir / "config.json").read_text()
    assert many.tokenizer_dir is not None
    assert (many.config_dir / "tokenizer/tokenizer.json").read_text() == (
        one.config_dir / "tokenizer/tokenizer.json"
    ).read_text()
    assert {tensor.path for tensor in many.tensors.values()} == set(find_pieces(first))


@pytest.mark.usefixtures("unpack_here")
def test_the_first_piece_may_have_no_tensors(tmp_path, monkeypatch):
    """As llama.cpp's --no-tensor-first-split leaves it."""
    whole = write(tmp_path / "whole.gguf", piece_tensors=0)
    monkeypatch.setattr("gguf_writing.GGUFWriter", partial(GGUFWriter, small_first_shard=True))
    first = write(tmp_path / "model.gguf")
    checkpoint = open_gguf(first, tmp_path / "cache")
    assert {tensor.path for tensor in checkpoint.tensors.values()} == set(find_pieces(first)[1:])
    assert values(first) == values(whole)
    config = open_gguf(whole, tmp_path / "cache").config_dir / "config.json"
    assert (checkpoint.config_dir / "config.json").read_text() == config.read_text()
    assert str(first) in {path for path, _, _ in Source.of(checkpoint).files}


@pytest.mark.usefixtures("unpack_here")
def test_any_piece_names_the_model(tmp_path, monkeypatch):
    first = write(tmp_path / "model.gguf")
    opened = open_gguf(first, tmp_path / "cache")
    monkeypatch.setattr(gguf, "_run_child", lambda *_: pytest.fail("unpacked again"))
    assert [open_gguf(piece, tmp_path / "cache") for piece in find_pieces(first)] == [opened] * len(find_pieces(first))
    assert opened.path == first


def test_the_child_unpacks_them(tmp_path):
    checkpoint = open_gguf(write(tmp_path / "model.gguf"), tmp_path / "cache")
    assert AutoConfig.from_pretrained(checkpoint.config_dir).tie_word_embeddings is False  # output.weight is in the last piece
    assert not (checkpoint.config_dir / "work").exists()


@pytest.mark.usefixtures("unpack_here")
def test_a_change_of_any_piece_is_noticed(tmp_path):
    first = write(tmp_path / "model.gguf")
    for piece in find_pieces(first):
        before = open_gguf(first, tmp_path / "cache").config_dir
        os.utime(piece, ns=(1, 1))
        assert open_gguf(first, tmp_path / "cache").config_dir != before
        assert not before.exists()  # swept
    find_pieces(first)[1].unlink()
    assert sweep_unpacked(tmp_path / "cache") > 0


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("name", ["model-00001-of-00001.gguf", "model-00001-of-00003.gguf"])
def test_a_whole_file_may_be_called_like_a_piece(tmp_path, name):
    path = write(tmp_path / "whole.gguf", piece_tensors=0).rename(tmp_path / name)
    checkpoint = open_gguf(path, tmp_path / "cache")
    assert {tensor.path for tensor in checkpoint.tensors.values()} == {path}


@pytest.mark.usefixtures("unpack_here")
def test_pieces_are_found_beside_a_link(tmp_path):
    """As in the cache of huggingface_hub, where files are links to others that are called after their hashes."""
    first = write(tmp_path / "model.gguf")
    (tmp_path / "snapshot").mkdir()
    for number, piece in enumerate(find_pieces(first)):
        blob = piece.rename(tmp_path / f"blob{number}")
        (tmp_path / "snapshot" / piece.name).symlink_to(blob)
    link = tmp_path / "snapshot" / first.name
    assert open_gguf(link, tmp_path / "cache").path == link


def swap(first: Path) -> None:
    _, second, third, *_ = find_pieces(first)
    kept = second.read_bytes()
    shutil.copy(third, second)
    third.write_bytes(kept)


def put_in_other(first: Path, piece_tensors: int, architecture: str = "llama") -> None:
    other = write(first.with_name("other.gguf"), architecture, piece_tensors)
    shutil.copy(find_pieces(other)[1], find_pieces(first)[1])


def set_key(path: Path, key: str, value: int) -> None:
    reader = GGUFReader(path, "r+")
    reader.fields[key].parts[-1][0] = value
    reader.data.flush()


def double(first: Path) -> None:
    second = find_pieces(first)[1]
    shutil.copy(first, second)
    set_key(second, "split.no", 1)


def promise_more(first: Path) -> None:
    for piece in find_pieces(first):
        set_key(piece, "split.tensors.count", 99)


def shorten(first: Path) -> None:
    second = find_pieces(first)[1]
    os.truncate(second, second.stat().st_size - 64)


def rename(first: Path) -> None:
    for number, piece in enumerate(find_pieces(first)):
        piece.rename(piece.with_name(f"x{number}.gguf"))


def put_whole(first: Path) -> None:
    shutil.copy(write(first.with_name("whole.gguf"), piece_tensors=0), find_pieces(first)[1])


SPOILT = {
    "a piece is missing": (lambda first: find_pieces(first)[1].unlink(), r"lacks 1 of the \d pieces.*model-00002-of"),
    "the last is missing": (lambda first: find_pieces(first)[-1].unlink(), r"lacks 1 of the \d pieces"),
    "two are swapped": (swap, r"model-00002-of-0000\d\.gguf says of itself that it is piece 3"),
    "of another division": (lambda first: put_in_other(first, 4), r"00002-of-0000\d\.gguf says of itself that it is piece 2"),
    "of another model": (lambda first: put_in_other(first, 9, "qwen2"), r"00002-of-00003.*says something else.*split\.tensors"),
    "a whole model in its place": (put_whole, r"00002-of-0000\d\.gguf says of itself that it is no piece"),
    "a truncated one": (shorten, r"00002-of-0000\d\.gguf is truncated"),
    "one tensor in two": (double, "has too"),
    "fewer tensors than promised": (promise_more, "promises 99 tensors"),
    "renamed": (rename, "NAME-00001-of"),
}


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_pieces_that_do_not_belong_together_are_refused_by_name(tmp_path, spoil, message):
    first = write(tmp_path / "model.gguf")
    spoil(first)
    given = first if first.exists() else tmp_path / "x0.gguf"
    with pytest.raises(CheckpointError, match=message):
        open_gguf(given, tmp_path / "cache")


@pytest.mark.usefixtures("unpack_here")
def test_a_key_of_a_later_piece_is_not_passed_over(tmp_path):
    first = write(tmp_path / "model.gguf")
    one = write_gguf(tmp_path / "one.gguf", "llama", LLAMA[0] | {"rope.freq_base": 5.0}, LLAMA[1], ENCODINGS, TOKENS, 7)
    second = find_pieces(first)[1]
    shutil.copy(find_pieces(one)[0], second)
    set_key(second, "split.no", 1)
    with pytest.raises(CheckpointError, match=r"says something else than model-00001.*llama\.rope\.freq_base"):
        open_gguf(first, tmp_path / "cache")
