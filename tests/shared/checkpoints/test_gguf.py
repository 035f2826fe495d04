"""Opening GGUF files: unpacked once in a child, read from the table afterwards, failures told clearly."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_models import LLAMA
from gguf_writing import write_gguf
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from layermesh.shared.checkpoints import gguf, open_gguf
from layermesh.shared.errors import CheckpointError, DiskFullError, ResourceError, UnsupportedModelError

ALPHABET = list(bytes_to_unicode().values())
TOKENS = [*ALPHABET, "ab", "abc", "<|im_start|>", "<|im_end|>"]
TEXTS = ["abc ab", "  naïve\n\tcafé 日本 🙂", "<|im_start|>user\nabc<|im_end|>", "", "x" * 50]
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
TOKENIZER = {
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.token_type": [1] * 258 + [3, 3],
    "tokenizer.ggml.eot_token_id": 259,
    "tokenizer.chat_template": TEMPLATE,
}


def write(path: Path, tokens: list[str] | None = None, **metadata: object) -> Path:
    return write_gguf(path, "llama", LLAMA[0] | metadata, LLAMA[1], ["Q4_0", "F16"], tokens)


def test_the_child_unpacks_once(tmp_path, monkeypatch):
    path = write(tmp_path / "tiny.gguf", TOKENS, **TOKENIZER)
    first = open_gguf(path, tmp_path / "cache")
    monkeypatch.setattr(gguf, "_run_child", lambda *_: pytest.fail("unpacked again"))
    second = open_gguf(path, tmp_path / "cache")
    assert first == second
    assert first.tensors == second.tensors
    assert AutoConfig.from_pretrained(first.config_dir).architectures == ["LlamaForCausalLM"]
    assert first.tokenizer_dir is not None
    assert AutoTokenizer.from_pretrained(first.tokenizer_dir).encode("abc")
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [first.config_dir.name]
    assert not (first.config_dir / "work").exists()


@pytest.mark.usefixtures("unpack_here")
def test_the_tokenizer_is_the_one_transformers_makes(tmp_path):
    path = write(tmp_path / "tiny.gguf", TOKENS, **TOKENIZER)
    checkpoint = open_gguf(path, tmp_path / "cache")
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.tokenizer_dir)
    for text in TEXTS:
        ids = expected.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == expected.decode(ids)
    assert tokenizer.special_tokens_map == expected.special_tokens_map
    assert tokenizer.get_chat_template() == TEMPLATE


@pytest.mark.usefixtures("unpack_here")
def test_generation_stops_at_the_end_of_turn_too(tmp_path):
    checkpoint = open_gguf(write(tmp_path / "tiny.gguf", TOKENS, **TOKENIZER), tmp_path / "cache")
    generation = GenerationConfig.from_pretrained(checkpoint.config_dir)
    assert generation.eos_token_id == [2, 259]
    assert generation.bos_token_id == 1


@pytest.mark.usefixtures("unpack_here")
def test_a_file_without_vocabulary_has_no_tokenizer(tmp_path):
    checkpoint = open_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert checkpoint.tokenizer_dir is None
    assert checkpoint.tokenizer_error is None


@pytest.mark.usefixtures("unpack_here")
def test_a_tokenizer_nobody_can_build_leaves_a_model_without(tmp_path):
    path = write(tmp_path / "tiny.gguf", TOKENS, **TOKENIZER)
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0rwkv"))
    checkpoint = open_gguf(path, tmp_path / "cache")
    assert checkpoint.tokenizer_dir is None
    assert checkpoint.tokenizer_error is not None
    assert "rwkv" in checkpoint.tokenizer_error


@pytest.mark.usefixtures("unpack_here")
def test_a_changed_file_is_unpacked_again(tmp_path):
    path = write(tmp_path / "tiny.gguf")
    first = open_gguf(path, tmp_path / "cache")
    other = open_gguf(write(tmp_path / "other.gguf"), tmp_path / "cache")
    os.utime(path, ns=(1, 1))
    second = open_gguf(path, tmp_path / "cache")
    assert second.config_dir != first.config_dir
    assert set((tmp_path / "cache").iterdir()) == {second.config_dir, other.config_dir}


@pytest.mark.usefixtures("unpack_here")
def test_what_is_opened_counts_as_used(tmp_path):
    folder = open_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "cache").config_dir
    os.utime(folder, (0, 0))
    open_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")
    open_gguf(write(tmp_path / "other.gguf"), tmp_path / "cache")
    assert folder.is_dir()


@pytest.mark.usefixtures("unpack_here")
def test_what_lies_beside_the_file_is_not_part_of_it(tmp_path):
    path = write(tmp_path / "tiny.gguf", TOKENS, **TOKENIZER)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["x.y"]}}')
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "x.y"}}')
    assert open_gguf(path, tmp_path / "cache").tokenizer_dir is not None


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        ("rwkv7", UnsupportedModelError, "architecture 'rwkv7'.*qwen3.*safetensors"),
        ("t5", UnsupportedModelError, "does not continue text|architecture 't5'"),
        ("deci", UnsupportedModelError, "architecture 'deci'"),
        ("qwen35", CheckpointError, "metadata make no qwen35 model"),
    ],
)
def test_architectures_that_are_not_read_are_named(tmp_path, architecture, error, message):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, {"block_count": 2}, LLAMA[1])
    with pytest.raises(error, match=message):
        open_gguf(path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("spoil", ["{", "[]", '{"tensors": 1}', '{"tensors": {"a": []}}', "{}"])
def test_a_damaged_table_says_how_to_mend_it(tmp_path, spoil):
    path = write(tmp_path / "tiny.gguf")
    table = open_gguf(path, tmp_path / "cache").config_dir / "tensors.json"
    table.write_text(spoil)
    with pytest.raises(CheckpointError, match=r"Remove it|again"):
        open_gguf(path, tmp_path / "cache")


def finished(report: object, status: int = 1, stderr: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.CompletedProcess([], status, json.dumps(report).encode(), stderr)


@pytest.mark.parametrize(
    ("child", "error", "message"),
    [
        (
            finished({"error": "UnsupportedModelError", "message": "no such kind"}),
            UnsupportedModelError,
            "no such kind",
        ),
        (finished({"error": "CheckpointError", "message": "half a file"}), CheckpointError, "half a file"),
        (finished({"errno": errno.ENOSPC, "message": "full"}), DiskFullError, "no room"),
        (finished([], stderr=b"Traceback\nMemoryError"), CheckpointError, "failed .MemoryError"),
        (subprocess.CompletedProcess([], -9, b"", b""), CheckpointError, "status -9"),
    ],
    ids=["unsupported", "broken", "disk full", "out of memory", "killed"],
)
def test_what_stops_the_child_is_told(tmp_path, monkeypatch, child, error, message):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: child)
    with pytest.raises(error, match=message) as raised:
        open_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "cache")
    assert "Traceback" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_child_has_a_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_CHILD_SECONDS", 0.05)
    with pytest.raises(CheckpointError, match="took more than"):
        open_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "cache")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_the_child_has_a_memory_limit():
    script = (
        "from layermesh.shared.checkpoints import unpack_gguf\n"
        "unpack_gguf._bound_memory()\n"
        "try:\n    bytearray(5 * 2**30)\nexcept MemoryError:\n    print('bounded')"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "bounded"


def test_a_missing_file_is_ours_to_explain(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        open_gguf(tmp_path / "tiny.gguf", tmp_path / "cache")


@pytest.mark.usefixtures("unpack_here")
def test_where_the_cache_cannot_be_written_the_head_goes_to_a_folder_for_what_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path, blocked = write(tmp_path / "tiny.gguf"), tmp_path / "a file"
    blocked.touch()
    opened = open_gguf(path, blocked / "cache")
    assert opened.config_dir.parent.parent == tmp_path
    assert opened.tensors == open_gguf(path, tmp_path / "cache").tensors
    assert open_gguf(path, blocked / "cache").config_dir == opened.config_dir  # not unpacked again
    shutil.rmtree(opened.config_dir.parent)


@pytest.mark.usefixtures("unpack_here")
def test_where_no_folder_can_be_written_the_first_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    (tmp_path / "a file").touch()
    with pytest.raises(ResourceError, match=r"cannot write in .*a file: File exists\..*LAYERMESH_HOME"):
        open_gguf(write(tmp_path / "tiny.gguf"), tmp_path / "a file")
