import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tiny_tokenizers import KINDS, byte_level_bpe, tiny_tokenizer, wrap

from layermesh.coordinator.conversation import ChatOptions
from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.shared.errors import TokenizerError, UsageError

CHATML = (
    "{% for message in messages %}{{ '<s>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def chatty() -> Tokenizer:
    return tiny_tokenizer("byte-level", chat_template=CHATML)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return tiny_tokenizer("byte-level")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    wrap(byte_level_bpe(), chat_template=CHATML).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode_text("the fox")) == "the fox"


def test_loads_what_transformers_saved_without_the_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tokenizer = Tokenizer.load(saved, "toy")
    assert tokenizer.decode(tokenizer.encode("Hello")) == "user\nHello\nassistant\n"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param({}, "does not load", id="nothing"),
        pytest.param({"config.json": '{"model_type": "gpt2"}'}, "no vocabulary", id="no-files-for-gpt2"),
        pytest.param({"config.json": '{"model_type": "llama"}'}, "does not load", id="no-files-for-llama"),
        pytest.param({"tokenizer.json": "{"}, "does not load", id="cut-off"),
        pytest.param({"tokenizer.json": "[]"}, "does not load", id="not-an-object"),
        pytest.param({"tokenizer.json": '{"added_tokens": 7}'}, "does not load", id="wrong-fields"),
        pytest.param({"tokenizer.model": "x" * 100}, "does not load", id="not-sentencepiece"),
        pytest.param({"config.json": "[1"}, "does not load", id="broken-config"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, files: dict[str, str], why: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=rf"(?s)toy: .*{why}.*--prompt-ids"):
        Tokenizer.load(tmp_path, "toy")


def test_files_that_load_and_do_not_work(saved: Path) -> None:
    config = json.loads((saved / "tokenizer_config.json").read_text())
    (saved / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": "long"}))
    with pytest.raises(TokenizerError, match="does not load"):
        Tokenizer.load(saved, "toy")


def test_no_tokenizer_says_what_to_do() -> None:
    with pytest.raises(TokenizerError, match=r"toy: it comes without a tokenizer.*--prompt-ids"):
        Tokenizer.load(None, "toy")


def test_code_of_the_model_is_not_run(tmp_path: Path) -> None:
    evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(evil))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", **evil}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass")
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path, "toy")
    assert not (tmp_path / "ran").exists()


def test_a_conversation_is_what_transformers_makes_of_it(chatty: Tokenizer) -> None:
    theirs = chatty._tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert chatty.encode_chat(TALK) == chatty.encode(TALK) == chatty.encode("Hello") == theirs


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template={"default": "{{ 'a' }}", "tool_use": "{{ 'b' }}"})
    assert tokenizer.decode(tokenizer.encode("Hello")) == "a"


NAMED = {"tool_use": "{{ 'b' }}", "rag": "{{ 'c' }}"}


@pytest.mark.parametrize(
    ("templates", "options", "text"),
    [
        (NAMED, {"template": "rag"}, "c"),
        (NAMED, {"tools": [{"name": "f"}]}, "b"),
        ({**NAMED, "default": "{{ 'a' }}"}, {}, "a"),
        ({**NAMED, "default": "{{ 'a' }}"}, {"tools": [{"name": "f"}], "template": "default"}, "a"),
        (NAMED, {"template": "{{ 'd' }}"}, "d"),
        ("{{ 'a' }}", {"template": "default"}, "a"),
        (None, {"template": "{% if true %}d{% endif %}"}, "d"),
    ],
    ids=["by name", "for tools", "default", "default for tools", "its own text", "the only one", "a model without any"],
)  # fmt: skip
def test_a_template_is_chosen(templates: Any, options: dict[str, Any], text: str) -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template=templates)
    chat = ChatOptions(**options)
    assert tokenizer.decode(tokenizer.encode("Hello", chat=chat)) == text
    assert tokenizer.decode(tokenizer.encode(TALK, chat=chat)) == text


@pytest.mark.parametrize(
    ("templates", "options", "said"),
    [
        (NAMED, {}, "none is its default: rag, tool_use.*--chat-template rag.*--raw"),
        (NAMED, {"template": "rga"}, "no chat template 'rga': it has rag, tool_use"),
        ("{{ 'a' }}", {"template": "rag"}, "no chat template 'rag': it has default"),
        (None, {"template": "rag"}, "no chat template 'rag': it has none"),
        (None, {"tools": []}, "tools needs a chat template, and toy has none"),
    ],
    ids=["no default", "misspelt", "another", "none", "nothing to render"],
)
def test_a_template_that_cannot_be_chosen_names_those_there_are(templates: Any, options: dict[str, Any], said: str) -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template=templates)
    with pytest.raises(UsageError, match=said):
        tokenizer.encode("Hello", chat=ChatOptions(**options))


def test_raw_text_needs_no_template_of_several(plain: Tokenizer) -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template=NAMED)
    assert tokenizer.encode("Hello", raw=True) == plain.encode_text("Hello")
    with pytest.raises(UsageError, match="--raw leaves it out"):
        tokenizer.encode("Hello", raw=True, chat=ChatOptions("rag"))


FILES = {
    "a list in tokenizer_config.json": (
        "tokenizer_config.json",
        [{"name": "rag", "template": "{{ 'c' }}"}],
        {"rag": "{{ 'c' }}"},
    ),
    "a file": ("chat_template.jinja", "{{ 'a' }}", {"default": "{{ 'a' }}"}),
    "files of others": ("additional_chat_templates/rag.jinja", "{{ 'c' }}", {"rag": "{{ 'c' }}"}),
    "a processor's": ("chat_template.json", "{{ 'p' }}", {"default": "{{ 'p' }}"}),
    "no text": ("tokenizer_config.json", {"default": 5}, None),
}


@pytest.mark.parametrize(("name", "content", "expected"), FILES.values(), ids=FILES)
def test_templates_are_found_where_they_may_lie(
    tmp_path: Path, name: str, content: Any, expected: dict[str, str] | None
) -> None:
    wrap(byte_level_bpe()).save_pretrained(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".json":
        old = json.loads(path.read_text()) if path.is_file() else {}
        content = json.dumps({**old, "chat_template": content})
    path.write_text(content)
    if expected is None:
        with pytest.raises(TokenizerError, match="no text"):
            Tokenizer.load(tmp_path, "toy")
    else:
        assert Tokenizer.load(tmp_path, "toy")._templates == expected


def test_system_comes_first(chatty: Tokenizer) -> None:
    assert chatty.decode(chatty.encode("Hello", system="Brief.")).startswith("system\nBrief.\nuser\nHello")


@pytest.mark.parametrize("raw", [True, False])
def test_a_text_without_a_template_is_raw(chatty: Tokenizer, plain: Tokenizer, raw: bool) -> None:
    assert plain.encode("Hello", raw=raw) == plain.encode_text("Hello") == chatty.encode("Hello", raw=True)


def test_has_chat_template(chatty: Tokenizer, plain: Tokenizer) -> None:
    assert (chatty.has_chat_template, plain.has_chat_template) == (True, False)


@pytest.mark.parametrize("text", ["", " ", "\x00", "🙂" * 1000, "</s><|im_end|>"], ids=ascii)
def test_any_text_can_be_given(chatty: Tokenizer, text: str) -> None:
    assert all(isinstance(token_id, int) for token_id in chatty.encode_text(text) + chatty.encode(text))


@pytest.mark.parametrize("raw", [True, False])
def test_text_that_is_not_unicode_is_refused(chatty: Tokenizer, raw: bool) -> None:
    with pytest.raises(UsageError, match="not Unicode text"):
        chatty.encode("a\udcffb", raw=raw)


def test_a_conversation_needs_a_template(plain: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="toy has no chat template"):
        plain.encode_chat(TALK)


@pytest.mark.parametrize(
    ("template", "prompt", "options", "why"),
    [
        (None, "Hello", {}, "toy has none"),
        (CHATML, "Hello", {"raw": True}, "--raw leaves it out"),
        (CHATML, TALK, {}, "its own system message"),
    ],
    ids=["no-template", "raw", "conversation"],
)
def test_a_system_message_that_would_be_lost_is_refused(
    template: str | None, prompt: Any, options: dict[str, bool], why: str
) -> None:
    tokenizer = tiny_tokenizer("byte-level", chat_template=template)
    with pytest.raises(UsageError, match=f"{why}.*--system"):
        tokenizer.encode(prompt, system="Brief.", **options)


def test_what_is_no_conversation_is_refused(chatty: Tokenizer) -> None:
    with pytest.raises(UsageError, match="message 0"):
        chatty.encode([{"content": "no role"}])


@pytest.mark.parametrize(("token", "special"), [("</s>", True), ("<|im_end|>", True), ("<think>", False), ("a", False)])
def test_tokens_by_name(plain: Tokenizer, token: str, special: bool) -> None:
    token_id = plain.token_id(token)
    assert token_id is not None
    assert plain.is_special(token_id) == special
    assert plain.decode([token_id]) == ("" if special else token)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_not_there(kind: str) -> None:
    assert tiny_tokenizer(kind).token_id("<|eot_id|>") is None
