"""Models that are made to do harm: what each of them is, how it is made, and what has to come of it."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.layermesh.cli_checkpoints import add_tokenizer, build_llama, change_config, change_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
IDS = [5, 6, 7]
CANARY = "canary"  # a file that code of the model would leave behind
CODE = f"import pathlib\npathlib.Path(__file__).with_name({CANARY!r}).touch()\nclass X: pass\n"


class Bases:
    """Copies of one small model with a tokenizer, each to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.whole = folder / "whole"
        if not self.whole.exists():
            add_tokenizer(build_llama(self.whole))

    def copy(self) -> Path:
        self._number += 1
        return Path(shutil.copytree(self.whole, self._folder / f"{os.getpid()}-{self._number}" / "model"))


@dataclass(frozen=True)
class Model:
    """`kinds` are the errors that are right, or "answer" where it is harmless; one of the words in `said` is in the message."""

    make: Callable[[Path], Path]
    kinds: tuple[str, ...]
    said: str = ""
    prompt: Any = None


CHECKPOINT, UNSUPPORTED, TOKENIZER = ("CheckpointError",), ("UnsupportedModelError",), ("TokenizerError",)
REFUSED = (*CHECKPOINT, *UNSUPPORTED)
HARMLESS = ("answer",)
EITHER = (*HARMLESS, *REFUSED, "ModelError")

MODELS: dict[str, Model] = {}


def model(name: str, kinds: tuple[str, ...], make: Callable[[Path], object], said: str = "", prompt: Any = None) -> None:
    """Add a model that `make` makes of a good one; it may return another path to open."""

    def made(folder: Path) -> Path:
        path = make(folder)
        return path if isinstance(path, Path) else folder

    if name in MODELS:
        raise ValueError(f"{name} is there twice")
    MODELS[name] = Model(made, kinds, said, IDS if prompt is None else prompt)


# safetensors


def raw(header: bytes, length: int | None = None, data: bytes = bytes(64)) -> Callable[[Path], object]:
    size = len(header) if length is None else length
    return lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + header + data)


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: change_header(folder, change)


def norm(**changes: Any) -> Callable[[Path], object]:
    return header(lambda entries: entries[NORM].update(changes))


def named(name: str) -> Callable[[Path], object]:
    return header(lambda entries: entries.update({name: entries.pop(NORM)}))


def shifted(num_bytes: int) -> Callable[[Path], object]:
    def change(entries: dict[str, Any]) -> None:
        begin, end = entries[NORM]["data_offsets"]
        entries[NORM]["data_offsets"] = [begin + num_bytes, end + num_bytes]

    return header(change)


def twice(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].rstrip()
    entry = json.loads(text)[NORM]
    text = text[:-1] + f',"{NORM}":{json.dumps(entry)}}}'.encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def empty_over_another(entries: dict[str, Any]) -> None:
    begin = entries[NORM]["data_offsets"][0]
    entries["empty"] = {"dtype": "F32", "shape": [0], "data_offsets": [begin + 4, begin + 4]}


def cut(num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - num_bytes)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return spoil


def filled(name: str, value: float) -> Callable[[Path], object]:
    return weights(lambda tensors: tensors[name].fill_(value))


def cast(dtype: torch.dtype) -> Callable[[Path], object]:
    return weights(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))


MLP = "model.layers.1.mlp.up_proj.weight"
model("safetensors: a header of 2^63 bytes", CHECKPOINT, raw(b"{}", 2**63))
model("safetensors: a header of 99 MB in a file of 70 bytes", CHECKPOINT, raw(b"{}", 99_000_000), "truncated")
model("safetensors: a header of no bytes", CHECKPOINT, raw(b"", 0))
model("safetensors: a header of 20 MB of blanks", CHECKPOINT, raw(b" " * 20_000_000), "JSON")
model("safetensors: a header of 100,000 brackets", CHECKPOINT, raw(b"[" * 100_000), "nested too deeply")
model("safetensors: a header of 100,000 objects", CHECKPOINT, raw(b'{"a":' * 100_000), "nested too deeply")
model("safetensors: 50,000 empty tensors", REFUSED, raw(
    json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}).encode()
))  # fmt: skip
model("safetensors: a number of 5,000 digits", CHECKPOINT, raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"))
model("safetensors: nothing at all", CHECKPOINT, lambda folder: (folder / WEIGHTS).write_bytes(b""))
model("safetensors: data that end too early", CHECKPOINT, cut(1), "truncated")
model("safetensors: nothing but a header", CHECKPOINT, cut(300_000), "truncated")
model("safetensors: one tensor over another", CHECKPOINT, shifted(-4), "over each other")
model("safetensors: data before the beginning", CHECKPOINT, shifted(-(2**40)), "impossible offsets")
model("safetensors: data beyond the end", CHECKPOINT, shifted(2**60), "truncated")
model("safetensors: an empty tensor inside another", CHECKPOINT, header(empty_over_another), "over each other")
model("safetensors: a name twice", CHECKPOINT, twice, "twice")
for odd, name in {
    "../../x": "a path upwards", "/etc/passwd": "an absolute path", "a\0b": "NUL", "x" * 10_000: "10,000 characters",
    "a\x1b[2J": "an escape sequence", "": "nothing", "a\\b": "a backslash", "\u202ea": "text turned round",
}.items():  # fmt: skip
    model(f"safetensors: {name} for a name", CHECKPOINT, named(odd), "no tensor name")
model("safetensors: a shape whose product overflows", CHECKPOINT, norm(shape=[2**32, 2**32]), "impossible shape")
model("safetensors: a shape of 2^62 values", CHECKPOINT, norm(shape=[2**62]))
model("safetensors: a negative shape", CHECKPOINT, norm(shape=[-64, -1]), "impossible shape")
model("safetensors: a shape of 17 dimensions", CHECKPOINT, norm(shape=[1] * 16 + [64]), "impossible shape")
model("safetensors: a shape of text", CHECKPOINT, norm(shape="64"), "impossible shape")
model("safetensors: another shape of the same size", REFUSED, norm(shape=[8, 8]), "shape")
model("safetensors: a dtype that there is not", UNSUPPORTED, norm(dtype="F7"), "dtype")
model("safetensors: a dtype that is a path", UNSUPPORTED, norm(dtype="../../x"), "dtype")
model("safetensors: a dtype of twice the size", CHECKPOINT, norm(dtype="F64"), "bytes")
model("safetensors: whole numbers for weights", EITHER, cast(torch.int32))
model("safetensors: truth values for weights", EITHER, cast(torch.bool))
model("safetensors: weights in double precision", EITHER, cast(torch.float64))
model("safetensors: NaN in a layer", ("ModelError",), filled(MLP, float("nan")), "not numbers")
model("safetensors: infinity in a layer", ("ModelError",), filled(MLP, float("inf")), "not numbers")
model("safetensors: NaN in the last norm", ("ModelError",), filled(NORM, float("nan")), "not numbers")
model("safetensors: weights that overflow", ("ModelError",), filled(MLP, 3e38), "not numbers")


# index files


def index(shard: Any, **others: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "model-1.safetensors")
        table = dict.fromkeys(names, "model-1.safetensors") | {NORM: shard}
        (folder / INDEX).write_text(json.dumps({"weight_map": table, **others}))

    return write


def linked(target: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        index("model-2.safetensors")(folder)
        (folder / "model-2.safetensors").symlink_to(target)

    return write


for odd, name in {
    "../whole/model.safetensors": "upwards", "/etc/passwd": "to an absolute path", "a/b": "into a folder",
    "..": "to the parent", "model-1.safetensors\0": "with NUL", "x" * 300: "to a name of 300 characters",
}.items():  # fmt: skip
    model(f"index: {name}", CHECKPOINT, index(odd), "as a file of this folder")
model("index: to a number", CHECKPOINT, index(7), "as a file of this folder")
model("index: to itself", CHECKPOINT, index(INDEX))
model("index: to a shard that is missing", CHECKPOINT, index("model-9.safetensors"), "lacks 1 of 2 shards")
model("index: to pickles", UNSUPPORTED, index("pytorch_model.bin"), "pickle")
model("index: to a link to /etc/passwd", CHECKPOINT, linked("/etc/passwd"))
model("index: to a link to /dev/zero", CHECKPOINT, linked("/dev/zero"))
model("index: to a link to itself", CHECKPOINT, linked("model-2.safetensors"))
model("index: nested too deeply", CHECKPOINT, lambda folder: (
    (folder / WEIGHTS).unlink(), (folder / INDEX).write_text('{"weight_map":' * 50_000)
), "nested too deeply")  # fmt: skip


# config.json and its kin


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: change_config(folder, **changes)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def pipe(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def with_code(**changes: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        for name in ("evil.py", "configuration_evil.py", "modeling_evil.py", "generate.py", "__init__.py", "transformers.py"):
            (folder / name).write_text(CODE)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(CODE)
        change_config(folder, **changes)

    return make


ABSURD: dict[str, dict[str, Any]] = {
    "10^9 layers": {"num_hidden_layers": 10**9},
    "no layers": {"num_hidden_layers": 0},
    "−1 layers": {"num_hidden_layers": -1},
    "layers of text": {"num_hidden_layers": "4; import os"},
    "a width of −1": {"hidden_size": -1},
    "a width of 2^60": {"hidden_size": 2**60},
    "a width of text": {"hidden_size": "many"},
    "no heads": {"num_attention_heads": 0},
    "2^31 heads": {"num_attention_heads": 2**31},
    "heads of 2^40": {"head_dim": 2**40},
    "a vocabulary of 2^40": {"vocab_size": 2**40},
    "a vocabulary of −1": {"vocab_size": -1},
    "an MLP of 2^62": {"intermediate_size": 2**62},
    "an unknown kind": {"model_type": "x"},
    "a kind that is a list": {"model_type": ["llama"]},
    "a kind that is a path": {"model_type": "../../x"},
    "an activation that is code": {"hidden_act": "__import__('os')"},
    "a million kinds of layers": {"layer_types": ["x"] * 10**6},
}
for name, changes in ABSURD.items():
    model(f"config: {name}", (*REFUSED, "ModelError"), config(**changes))
for name, changes in {
    "a context of 2^62": {"max_position_embeddings": 2**62}, "a negative context": {"max_position_embeddings": -1},
    "a base of NaN": {"rope_theta": float("nan")}, "an epsilon of infinity": {"rms_norm_eps": float("inf")},
    "rotary factors of 10^300": {"rope_scaling": {"rope_type": "linear", "factor": 1e300}},
    "a dtype that is code": {"dtype": "__import__"}, "an end that is 10^30": {"eos_token_id": 10**30},
}.items():  # fmt: skip
    model(f"config: {name}", (*EITHER, "UsageError"), config(**changes))
REMOTE = {
    "AutoConfig": "configuration_evil.X",
    "AutoModelForCausalLM": "modeling_evil.X",
    "AutoTokenizer": ["evil.X", "evil.X"],
}
model("code: of an unknown kind of model", UNSUPPORTED, with_code(model_type="evil", auto_map=REMOTE), "never run")
model("code: of a known kind of model", HARMLESS, with_code(auto_map=REMOTE))
model("code: in another repository", HARMLESS, with_code(auto_map={"AutoModelForCausalLM": "evil/repo--modeling_evil.X"}))
model("code: a kernel of a hub for attention", UNSUPPORTED, with_code(attn_implementation="evil/kernel"), "evil/kernel")
model("code: a kernel of a hub, privately", UNSUPPORTED, with_code(_attn_implementation="evil/kernel:main"), "evil/kernel")
model("code: of a tokenizer", (*HARMLESS, *TOKENIZER), lambda folder: (
    with_code()(folder), text("tokenizer_config.json", json.dumps({"auto_map": REMOTE, "tokenizer_class": "X"}))(folder)
), prompt="hello")  # fmt: skip
model(
    "code: nothing but pickles", UNSUPPORTED, lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "pickle"
)
model("code: a pickle called safetensors", CHECKPOINT, lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n."))
model("config: a pipe", CHECKPOINT, pipe("config.json"))
model("config: 100,000 brackets", CHECKPOINT, text("config.json", "[" * 100_000))
model("config: a link to /dev/zero", CHECKPOINT, lambda folder: (
    (folder / "config.json").unlink(), (folder / "config.json").symlink_to("/dev/zero")
))  # fmt: skip
model("generation: 100,000 brackets", REFUSED, text("generation_config.json", "[" * 100_000))
model("generation: a million ends", (*EITHER, "UsageError"), text(
    "generation_config.json", json.dumps({"eos_token_id": list(range(10**6))})
))  # fmt: skip
model("generation: a temperature of NaN", (*REFUSED, "UsageError"), text(
    "generation_config.json", '{"do_sample": true, "temperature": NaN}'
))  # fmt: skip
model("generation: a pipe", EITHER, pipe("generation_config.json"))


# tokenizers


def tokenizer(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def replace(find: str, put: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": find}, "content": put}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


text_model = partial(model, prompt="x" * 40)
text_model("tokenizer: a letter becomes 2^60", TOKENIZER, tokenizer(
    normalizer={"type": "Sequence", "normalizers": [replace("x", "xx")] * 60}
), "1024")  # fmt: skip
text_model("tokenizer: a letter becomes 2^60, in nests", TOKENIZER, tokenizer(
    normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replace("x", "x" * 16)] * 5}] * 3}
), "1024")  # fmt: skip
text_model("tokenizer: a letter becomes a million", TOKENIZER, tokenizer(normalizer=replace("x", "x" * 10**6)), "1024")
text_model(
    "tokenizer: a pattern that takes for ever", TOKENIZER, tokenizer(pre_tokenizer=split("(x+x+)+y")), "fails at this prompt"
)
text_model("tokenizer: padded to 2^40", TOKENIZER, tokenizer(
    padding={"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
             "pad_token": "a"}
), "pads")  # fmt: skip
text_model("tokenizer: 100,000 brackets", TOKENIZER, text("tokenizer.json", "[" * 100_000))
text_model("tokenizer: an empty object", TOKENIZER, text("tokenizer.json", "{}"))
text_model("tokenizer: a pipe", TOKENIZER, pipe("tokenizer.json"))
text_model("tokenizer: settings that are a pipe", (*TOKENIZER, *HARMLESS), pipe("tokenizer_config.json"))
text_model("tokenizer: a token with the id 2^32 − 1", (*TOKENIZER, *HARMLESS), tokenizer(
    added_tokens=[{"id": 2**32 - 1, "content": "<e>", "single_word": False, "lstrip": False, "rstrip": False,
                   "normalized": False, "special": True}]
))  # fmt: skip
text_model("tokenizer: ids beyond the vocabulary", (*TOKENIZER, *HARMLESS, "UsageError"), tokenizer(
    added_tokens=[{"id": 10**6, "content": "x", "single_word": False, "lstrip": False, "rstrip": False,
                   "normalized": False, "special": False}]
))  # fmt: skip
text_model("tokenizer: rubbish for sentencepiece", TOKENIZER, lambda folder: (
    (folder / "tokenizer.json").unlink(), (folder / "tokenizer.model").write_bytes(b"\x0a\xff" * 5000)
))  # fmt: skip


# chat templates, of which tests/coordinator/test_chat.py has more


def template(content: str) -> Callable[[Path], object]:
    return text("chat_template.jinja", content)


for name, content in {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a text of 100 GB": "{{ 'x' * 10**11 }}",
    "output without end": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "a way to all classes": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "a file of the system": "{% include '/etc/passwd' %}",
    "a file through a builtin": "{{ cycler.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}.items():
    text_model(f"template: {name}", TOKENIZER, template(content), "--raw")


# GGUF, of whose heads tests/shared/checkpoints/test_gguf_header.py has more

U32, U64, STRING, ARRAY = 4, 10, 8, 9


def counted(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARCHITECTURE = counted(b"general.architecture") + struct.pack("<I", STRING) + counted(b"llama")


def gguf(
    *tensors: bytes, keys: tuple[bytes, ...] = (ARCHITECTURE,), counts: tuple[int, int] | None = None, data: bytes = bytes(4096)
) -> Callable[[Path], object]:
    def make(folder: Path) -> Path:
        num_tensors, num_keys = counts or (len(tensors), len(keys))
        head = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + b"".join(keys) + b"".join(tensors)
        path = folder / "model.gguf"
        path.write_bytes(head + bytes(-len(head) % 32) + data)
        return path

    return make


def placed(name: bytes = b"token_embd.weight", sizes: tuple[int, ...] = (32, 4), kind: int = 0, offset: int = 0) -> bytes:
    return counted(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def number(key: bytes, value: int) -> bytes:
    return counted(key) + struct.pack("<II", U32, value)


model("gguf: 2^63 tensors", CHECKPOINT, gguf(counts=(2**63, 1)))
model("gguf: 2^63 keys", CHECKPOINT, gguf(counts=(0, 2**63)))
model("gguf: a text of 2^63 bytes", CHECKPOINT, gguf(keys=(ARCHITECTURE, counted(b"x") + struct.pack("<IQ", STRING, 2**63))))
model("gguf: a key of 2^40 bytes", CHECKPOINT, gguf(keys=(struct.pack("<Q", 2**40) + b"x",)))
model(
    "gguf: a list of 2^62 numbers",
    CHECKPOINT,
    gguf(keys=(ARCHITECTURE, counted(b"x") + struct.pack("<IIQ", ARRAY, U32, 2**62))),
)
model("gguf: lists in lists", CHECKPOINT, gguf(keys=(ARCHITECTURE, counted(b"x") + struct.pack("<IIQ", ARRAY, ARRAY, 9) * 50)))
model("gguf: a value of an unknown type", CHECKPOINT, gguf(keys=(ARCHITECTURE, counted(b"x") + struct.pack("<I", 99))))
model("gguf: weights of an unknown kind", UNSUPPORTED, gguf(placed(kind=99)))
model("gguf: an alignment of 0", CHECKPOINT, gguf(placed(), keys=(ARCHITECTURE, number(b"general.alignment", 0))))
model("gguf: an alignment of 2^31", CHECKPOINT, gguf(placed(), keys=(ARCHITECTURE, number(b"general.alignment", 2**31))))
model("gguf: an offset of 2^64 − 32", CHECKPOINT, gguf(placed(offset=2**64 - 32)))
model("gguf: an offset beyond the end", CHECKPOINT, gguf(placed(offset=2**50)))
model("gguf: every tensor at the same place", CHECKPOINT, gguf(placed(b"a"), placed(b"b"), placed(b"c")))
model("gguf: a tensor twice", CHECKPOINT, gguf(placed(), placed(offset=512)))
model("gguf: sizes whose product overflows", CHECKPOINT, gguf(placed(sizes=(2**32, 2**32))))
model("gguf: 2^31 dimensions", CHECKPOINT, gguf(counted(b"x") + struct.pack("<I", 2**31)))
model("gguf: a path for a name", CHECKPOINT, gguf(placed(b"../../x")))
model("gguf: cut off in its head", CHECKPOINT, gguf(counts=(5, 1), data=b""))
model("gguf: cut off in its data", CHECKPOINT, gguf(placed(sizes=(32, 400))))
model("gguf: no architecture", CHECKPOINT, gguf(placed(), keys=()))
model("gguf: an architecture that is a path", UNSUPPORTED, gguf(
    placed(), keys=(counted(b"general.architecture") + struct.pack("<I", STRING) + counted(b"../../x"),)
))  # fmt: skip
model("gguf: 10^9 layers", REFUSED, gguf(placed(), keys=(ARCHITECTURE, number(b"llama.block_count", 10**9))))
model("gguf: nothing but its name", CHECKPOINT, gguf(keys=(), counts=(0, 0), data=b""))
