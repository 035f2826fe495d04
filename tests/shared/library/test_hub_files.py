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


NAMES = [
    "m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "deep/m-IQ4_XS.gguf", "mmproj-Q4_K_M.gguf", "m_Q5_0.gguf",
    "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf",
    "UD-Q2_K/m-00001-of-00003.gguf", "UD-Q2_K/m-00002-of-00003.gguf", "UD-Q2_K/m-00003-of-00003.gguf",
]  # fmt: skip
Q8_0, Q2_K = tuple(NAMES[5:7]), tuple(NAMES[7:])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("m.Q4_K_M.gguf", (NAMES[0],)), ("q4_k_s", (NAMES[1],)), ("m-IQ4_XS.gguf", (NAMES[2],)), ("IQ4_XS", (NAMES[2],)),
        ("q5_0", (NAMES[4],)), ("Q8_0", Q8_0), ("q8_0", Q8_0), (Q8_0[0], Q8_0), (Q8_0[1], Q8_0), ("ud-q2_k", Q2_K),
        ("m-00002-of-00003.gguf", Q2_K), (Q2_K[0], Q2_K),
    ],
)  # fmt: skip
def test_one_gguf_is_picked(wanted: str, found: tuple[str, ...]) -> None:
    assert pick_gguf("o/n", reversed(NAMES), wanted) == found


@pytest.mark.parametrize("wanted", ["Q4_K", "Q2_K", "config.json", "../m.Q4_K_M.gguf", "m-Q8_0-00001-of-00003.gguf"])
def test_no_gguf_is_named_with_the_choices(wanted: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"it has .*m-Q8_0-00001-of-00002\.gguf \(2 files\).*m\.Q4_K_M\.gguf"):
        pick_gguf("o/n", NAMES, wanted)


def test_several_that_fit_are_named_alone() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"2 of its models fit: a/m-Q8_0\.gguf, m-Q8_0-00001-of-00002\.gguf \(2 files\)\."
    ):
        pick_gguf("o/n", [*NAMES, "a/m-Q8_0.gguf"], "Q8_0")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_repository_that_lacks_a_piece_is_refused(lost: int) -> None:
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the 2 files of {Q8_0[0]}, {Q8_0[lost]} first"):
        pick_gguf("o/n", set(NAMES) - {Q8_0[lost]}, "Q8_0")
