import pytest

from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from layermesh.shared.library.hub_files import HubFile, choose_files, parse_shards, pick_gguf

INDEX = "model.safetensors.index.json"


def chosen(names: str, shards: str = "") -> set[str]:
    files = [HubFile(name, 1) for name in names.split()]
    return {file.name for file in choose_files("o/n", files, frozenset(shards.split()))}


@pytest.mark.parametrize(
    ("names", "shards", "wanted"),
    [
        ("config.json model.safetensors x.png", "", "config.json model.safetensors"),
        ("config.json model.safetensors a.safetensors b.safetensors", "a.safetensors b.safetensors",
         "config.json model.safetensors"),
        (f"config.json a.safetensors consolidated.safetensors {INDEX}", "a.safetensors",
         f"config.json a.safetensors {INDEX}"),
        ("config.json weights.safetensors consolidated.safetensors", "", "config.json weights.safetensors"),
        ("config.json model.safetensors original/model.safetensors original/tokenizer.model", "",
         "config.json model.safetensors"),
        ("config.json model.safetensors chat_template.jinja tokenizer_config.json spiece.model vocab.txt run.py", "",
         "config.json model.safetensors chat_template.jinja tokenizer_config.json spiece.model vocab.txt"),
        ("config.json model.safetensors additional_chat_templates/rag.jinja additional_chat_templates/a/b.jinja", "",
         "config.json model.safetensors additional_chat_templates/rag.jinja"),
    ],
    ids=["single", "single-before-shards", "shards", "own-name", "folders", "tokenizers", "templates"],
)  # fmt: skip
def test_what_is_taken(names: str, shards: str, wanted: str) -> None:
    assert chosen(names, shards) == set(wanted.split()) - ({INDEX} if INDEX not in wanted else set())


def test_weights_come_last() -> None:
    files = [HubFile(name, 1) for name in ("model.safetensors", "config.json", "tokenizer.json")]
    assert choose_files("o/n", files, frozenset())[-1].name == "model.safetensors"


@pytest.mark.parametrize(
    ("names", "shards", "error", "says"),
    [
        ("config.json pytorch_model.bin", "", UnsupportedModelError, "pickle"),
        ("config.json a.Q4_0.gguf", "", UnsupportedModelError, "o/n:a.Q4_0.gguf"),
        ("adapter_config.json adapter_model.safetensors", "", UnsupportedModelError, "adapter"),
        ("model_index.json unet/model.safetensors", "", UnsupportedModelError, "config.json"),
        ("config.json consolidated.safetensors", "", UnsupportedModelError, "transformers' format"),
        ("config.json a.safetensors b.safetensors", "", UnsupportedModelError, "transformers' format"),
        ("config.json a.safetensors", "a.safetensors b.safetensors", CheckpointError, "lacks b.safetensors"),
        ("config.json model.safetensors ../x", "", CheckpointError, "plain file name"),
        ("config.json model.safetensors a\\..\\x", "", CheckpointError, "plain file name"),
        ("config.json model.safetensors /etc/x", "", CheckpointError, "plain file name"),
    ],
    ids=["pickle", "gguf", "adapter", "diffusers", "mistral", "no-index", "no-shard", "up", "up-windows", "absolute"],
)
def test_what_is_refused(names: str, shards: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        chosen(names, shards)


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": "../x"}}', b'{"weight_map": {"a": 5.0}}',
     b'{"weight_map": {"a": ["x"]}}', b'{"weight_map": {"a": "' + b"x" * 201 + b'"}}', b"\xff", b"[" * 100_000],
    ids=["empty", "list", "nothing", "map-list", "up", "number", "nested", "long", "binary", "deep"],
)  # fmt: skip
def test_a_bad_index_is_refused(index: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_shards(index, "o/n")


NAMES = ["m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "deep/m-IQ4_XS.gguf", "mmproj-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("m.Q4_K_M.gguf", NAMES[0]), ("q4_k_s", NAMES[1]), ("m-IQ4_XS.gguf", NAMES[2]), ("IQ4_XS", NAMES[2])],
)
def test_one_gguf_is_picked(wanted: str, found: str) -> None:
    assert pick_gguf("o/n", NAMES, wanted) == found


@pytest.mark.parametrize("wanted", ["Q4_K", "m", "Q2_K", "config.json", "../m.Q4_K_M.gguf"])
def test_no_single_gguf_is_named_with_the_choices(wanted: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"m\.Q4_K_M\.gguf"):
        pick_gguf("o/n", NAMES, wanted)


def test_a_split_gguf_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="one part of several"):
        pick_gguf("o/n", NAMES, "Q8_0")
