import json
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cli_checkpoints import add_tokenizer, change_config, change_header, copied
from click.testing import Result

from layermesh import LayerMesh
from layermesh.shared.errors import LayermeshError

Run = Callable[..., Result]
SECONDS = 10  # no refusal takes longer
IDS = ("--prompt-ids", "5,6", "-n", "2", "--offline")


def check_refusal(result: Result, code: int, *said: str) -> None:
    """One message, nothing on stdout, the right exit code."""
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "fault in layermesh" not in result.stderr
    assert result.stderr.count("error: ") == 1
    for text in said:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("Hi", "--temperature", "-1"), 2, "temperature must be 0"),
        (("Hi", "--temperature", "nan"), 2, "temperature must be 0"),
        (("Hi", "--top-p", "2"), 2, "top_p must lie between 0 and 1"),
        (("Hi", "--min-p", "-0.1"), 2, "min_p must lie between 0 and 1"),
        (("Hi", "--top-k", "-1"), 2, "top_k must be a whole number"),
        (("Hi", "--repetition-penalty", "0"), 2, "repetition_penalty must be more than 0"),
        (("Hi", "--seed", "-1"), 2, "seed must be a whole number"),
        (("Hi", "--stop", ""), 2, "a stop string must not be empty"),
        (("Hi", "-n", "0"), 2, "at least one"),
        (("Hi", "--host-memory", "abc"), 2, "--host-memory: not an amount of memory"),
        (("Hi", "--host-memory", "0"), 2, "at least one byte"),
        (("Hi", "--host-memory", "-5MB"), 2, "not an amount of memory"),
        (("Hi", "--host-memory", "9" * 400 + "GB"), 2, "memory"),
        (("Hi", "--device-memory", "lots"), 2, "--device-memory: not an amount of memory"),
        (("Hi", "--host-memory", "10kB"), 6, "Give it more: --host-memory"),
        (("Hi", "--device", "nonsense"), 6, "there is no device 'nonsense'"),
        (("Hi", "--device", "cuda:99"), 6, "there is no device 'cuda:99'"),
        (("Hi", "--device", "meta"), 6, "does not compute on 'meta'"),
        (("Hi", "--dtype", "int3"), 2, "float32, bfloat16, float16"),
        (("Hi", "--revision", "main"), 2, "--revision is for models of the hub"),
        (("Hi", "--prompt-ids", "5"), 2, "not both"),
        (("--prompt-ids", ""), 2, "numbers with commas"),
        (("--prompt-ids", "5,,6"), 2, "numbers with commas"),
        (("--prompt-ids", "five"), 2, "numbers with commas"),
        (("--prompt-ids", "5,320"), 2, "token ids run from 0 to 319"),
        (("--prompt-ids", "-5"), 2, "token ids run from 0 to 319"),
        (("--prompt-ids", "5", "--system", "Be kind"), 2, "Leave out --system"),
        (("Hi", "--raw", "--system", "Be kind"), 2, "Leave out --system"),
        (("x" * 400,), 2, "takes at most 256"),
        (("",), 2, "the prompt is empty"),
        ((" \n",), 2, "the prompt is empty"),
        (("", "--raw"), 2, "the prompt is empty"),
        ((), 2, "the prompt is empty"),
    ],
    ids=lambda value: " ".join(value)[:30] or "nothing" if isinstance(value, tuple) else "",
)
def test_calls_that_cannot_be_meant(arguments: tuple[str, ...], code: int, said: str, layermesh: Run, text_model: Path) -> None:
    check_refusal(layermesh("generate", "-m", text_model, "--json", *arguments), code, said)


@pytest.mark.parametrize(
    "arguments",
    [("generate", "Hi", "-n", "many"), ("generate", "Hi", "--nonsense"), ("generate", "Hi", "there"), ("nonsense",)],
    ids=" ".join,
)
def test_flags_that_do_not_exist(arguments: tuple[str, ...], layermesh: Run) -> None:
    result = layermesh(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_stdin_that_is_not_text(layermesh: Run, text_model: Path) -> None:
    check_refusal(layermesh("generate", "-m", text_model, stdin=b"caf\xe9"), 2, "not UTF-8 text at byte 3")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "there is no file or folder ./nowhere"),
        ("nowhere.gguf", "there is no file or folder nowhere.gguf"),
        ("nonsense", "no model 'nonsense'"),
        ("", "no model ''"),
        ("owner/name", "is not in the cache"),
        ("../../nowhere", "there is no file or folder"),
        ("a\x00b", "no model"),
        ("n" * 5000, "no model"),
    ],
    ids=["path", "gguf", "name", "empty", "hub-id", "dots", "nul", "long"],
)
def test_models_that_are_not_there(name: str, said: str, layermesh: Run) -> None:
    check_refusal(layermesh("generate", "-m", name, "Hi", "--offline"), 3, said)


def test_text_for_a_model_without_a_tokenizer(layermesh: Run, bare_model: Path) -> None:
    check_refusal(layermesh("generate", "-m", bare_model, "Hi"), 3, "without a tokenizer", "--prompt-ids 1,2,3")
    check_refusal(layermesh("generate", "-m", bare_model, *IDS, "--stop", "x"), 2, "Leave out --stop")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lose_norm(folder: Path) -> None:
    change_header(folder, lambda header: header.pop("model.norm.weight"))


def reshape_norm(folder: Path) -> None:
    change_header(folder, lambda header: header["model.norm.weight"].update(shape=[8, 8]))


def rename_norm(folder: Path) -> None:
    change_header(folder, lambda header: header.update({"../norm": header.pop("model.norm.weight")}))


def flip_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9] ^= 0x80
    path.write_bytes(content)


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100_000] + b"\xff" * 100_000)


def move_weights(name: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / name)

    return move


def write(name: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        change_config(folder, **changes)

    return spoil


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "is truncated"),
    "flipped-header": (flip_header, "is not valid JSON"),
    "missing-tensor": (lose_norm, "lacks tensors that LlamaForCausalLM needs: model.norm.weight"),
    "wrong-shape": (reshape_norm, "has the shape (8, 8)"),
    "dots-in-a-name": (rename_norm, "which is no tensor name"),
    "not-a-number": (spoil_weights, "not numbers"),
    "pickle-bin": (move_weights("pytorch_model.bin"), "is a pickle file"),
    "pickle-pt": (move_weights("model.pt"), "is a pickle file"),
    "no-weights": (move_weights("weights.txt"), "holds no weights"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config-not-json": (write("config.json", '{"model_type":'), "is not valid JSON"),
    "config-a-list": (write("config.json", "[1]"), "is not an object"),
    "config-empty": (write("config.json", "{}"), "does not know the architecture"),
    "unknown-architecture": (config(model_type="nonsense"), "nonsense"),
    "remote-code": (config(model_type="nonsense", auto_map={"AutoConfig": "a.B"}), "is never run"),
    "encoder": (config(model_type="bert", architectures=["BertModel"]), ""),
    "masked-lm": (config(architectures=["LlamaForMaskedLM"]), "was not trained to write text"),
    "vision": (config(model_type="vit"), "does not generate text"),
    "encoder-decoder": (config(model_type="t5"), "does not generate text"),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), "quantised (gptq"),
    "quantised-oddly": (config(quantization_config=[1]), "config.json"),
    "negative-size": (config(hidden_size=-64), "negative dimension"),
    "huge-size": (config(hidden_size=2**40), "do"),
    "no-heads": (config(num_attention_heads=0), ""),
    "uneven-heads": (config(num_attention_heads=3), "config.json"),
    "endless-layers": (config(num_hidden_layers=2**31), "num_hidden_layers is 2147483648"),
    "more-layers": (config(num_hidden_layers=5), "lacks tensors"),
    "huge-vocabulary": (config(vocab_size=2**40), "do not belong together"),
    "text-for-a-size": (config(hidden_size="many"), "hidden_size"),
    "generation-not-json": (write("generation_config.json", "{"), "generation_config.json"),
    "generation-a-list": (write("generation_config.json", "[1]"), "generation_config.json"),
    "generation-hot": (write("generation_config.json", '{"do_sample": true, "temperature": "hot"}'), "generation_config"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_broken_checkpoints(spoil: Callable[[Path], None], said: str, layermesh: Run, spoilt: Path) -> None:
    spoil(spoilt)
    check_refusal(layermesh("generate", "-m", spoilt, *IDS), 3, said)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (write("tokenizer.json", "{"), "does not load"),
        (write("tokenizer_config.json", "["), "does not load"),
        (write("chat_template.jinja", "{% for %}"), "--raw"),
        (write("chat_template.jinja", "{{ ''.__class__.__mro__ }}"), "--raw"),
    ],
    ids=["not-json", "config-not-json", "template-syntax", "template-attack"],
)
def test_broken_tokenizers(spoil: Callable[[Path], None], said: str, layermesh: Run, spoilt: Path) -> None:
    spoil(add_tokenizer(spoilt))
    check_refusal(layermesh("generate", "-m", spoilt, "Hi", "-n", 2), 3, said)


def test_one_file_of_a_checkpoint(layermesh: Run, bare_model: Path) -> None:
    check_refusal(layermesh("generate", "-m", bare_model / "model.safetensors", *IDS), 2, "Give the folder it lies in")


def text_field(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(architecture: str, kind: int) -> bytes:
    """A GGUF file of one tensor of the quantisation `kind`."""
    field = text_field("general.architecture") + struct.pack("<I", 8) + text_field(architecture)
    tensor = text_field("token_embd.weight") + struct.pack("<IQQIQ", 2, 256, 4, kind, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + field + tensor + bytes(8192)


FILES: dict[str, tuple[str, bytes, str]] = {
    "not-gguf": ("x.gguf", b"junk" * 100, "is not a GGUF file"),
    "empty": ("x.gguf", b"", "is truncated"),
    "version": ("x.gguf", b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "is GGUF version 9"),
    "truncated": ("x.gguf", gguf("llama", 0)[:60], "is truncated"),
    "no-architecture": ("x.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not name its architecture"),
    "unknown-kind": ("x.gguf", gguf("llama", 999), "kind number 999"),
    "unknown-architecture": ("x.gguf", gguf("nonsense", 0), "'nonsense'"),
    "pickle": ("x.bin", b"\x80\x04.", "not read"),
    "pt": ("x.pt", b"PK\x03\x04", "not read"),
    "text": ("x.txt", b"Hello", "neither"),
}


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES)
def test_files_that_are_no_model(name: str, content: bytes, said: str, layermesh: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check_refusal(layermesh("generate", "-m", path, *IDS), 3, said)
    assert not list((Path(os.environ["LAYERMESH_HOME"]) / "unpacked").glob("unpacking-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(layermesh: Run, spoilt: Path) -> None:
    (spoilt / "model.safetensors").chmod(0)
    check_refusal(layermesh("generate", "-m", spoilt, *IDS), 3, "Check that the file is there and that you may read it")


def test_debug_shows_where(layermesh: Run) -> None:
    result = layermesh("generate", "-m", "./nowhere", "Hi", "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_the_memory_that_a_refusal_names_is_enough(command: str, layermesh: Run, text_model: Path) -> None:
    arguments = (command, "-m", text_model, *(["Hi", "-q"] if command == "generate" else []))
    refused = layermesh(*arguments, "--host-memory", "100kB")
    check_refusal(refused, 6)
    enough = refused.stderr.split("--host-memory ")[1].strip().rstrip(".")
    assert layermesh(*arguments, "--host-memory", enough).exit_code == 0


# Damage at random: refused by one of our errors, or harmless; never anything else and never for ever.


class TooSlow(BaseException):
    pass


@contextmanager
def limited() -> Iterator[None]:
    def raise_too_slow(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, raise_too_slow)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(folder: Path) -> None:
    with limited(), suppress(LayermeshError), LayerMesh(str(folder), offline=True) as mesh:
        mesh.generate([5, 6, 7], max_new_tokens=2)


def damaged(content: bytes, rng: random.Random, end: int) -> bytes:
    """Cut `content` off, or flip up to three bits before `end`."""
    if rng.random() < 0.3:
        return content[: rng.randrange(end)]
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_random_damage(name: str, spoilt: Path) -> None:
    content = (spoilt / name).read_bytes()
    end = len(content) if name == "config.json" else 8 + int.from_bytes(content[:8], "little")
    for seed in range(100):
        print(f"seed {seed}")
        (spoilt / name).write_bytes(damaged(content, random.Random(seed), end))
        attempt(spoilt)


ODD_VALUES: list[Any] = [-1, 0, 3, 2**31, 10**12, 2.5, "", "x", None, True, [], {}, {"a": 1}]


@pytest.mark.filterwarnings("ignore")
def test_odd_values_in_the_configuration(spoilt: Path) -> None:
    settings = json.loads((spoilt / "config.json").read_text())
    rng = random.Random(11)
    for name in settings:
        for value in rng.sample(ODD_VALUES, 4):
            print(f"{name} = {value!r}")
            (spoilt / "config.json").write_text(json.dumps(settings | {name: value}))
            attempt(spoilt)


def test_a_copy_is_whole(bare_model: Path, tmp_path: Path) -> None:
    """The damage above is what is refused, not the checkpoint itself."""
    with LayerMesh(str(copied(bare_model, tmp_path / "whole"))) as mesh:
        assert len(mesh.generate([5, 6, 7], max_new_tokens=2).token_ids) == 2
