"""What a GGUF file says of sampling, ends and templates reaches the same places as from a Hugging Face folder."""

import json
from types import SimpleNamespace

import pytest
from gguf_vocabularies import write_vocabulary
from transformers import AutoTokenizer

from layermesh.coordinator.generation_config import unapplied_settings
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.checkpoints.gguf_fields import MAX_KEPT_ELEMENTS, MAX_KEPT_TEXT
from layermesh.shared.checkpoints.gguf_generation import generation_settings
from layermesh.shared.errors import UnsupportedModelError

pytestmark = pytest.mark.usefixtures("unpack_here")
IDS = {"<|return|>": 90, "<|call|>": 91, "<|end|>": 92, "<|endoftext|>": 93}


def header(**metadata: object) -> SimpleNamespace:
    given = {key.replace("__", "."): value for key, value in metadata.items()}
    lengths = {key: len(value) for key, value in given.items() if isinstance(value, list)}
    return SimpleNamespace(metadata=given, array_lengths=lengths, path="m.gguf")


def settings(model_type: str = "llama", eos: object = 2, **metadata: object) -> dict[str, object]:
    config = SimpleNamespace(model_type=model_type, bos_token_id=1, eos_token_id=eos, pad_token_id=None)
    return generation_settings(header(**metadata), config, IDS.get)


def test_ends_of_answers_and_turns_are_ends():
    assert settings()["eos_token_id"] == 2
    assert settings(tokenizer__ggml__eot_token_id=5, tokenizer__ggml__eom_token_id=2)["eos_token_id"] == [2, 5]
    assert settings(eos=[7, 8])["eos_token_id"] == [7, 8]
    assert "eos_token_id" not in settings(eos=None)


@pytest.mark.parametrize("eot", [None, 92], ids=["as converted", "the end of a message as the end of a turn"])
def test_a_message_of_gpt_oss_ends_no_answer(eot):
    stated = {} if eot is None else {"tokenizer__ggml__eot_token_id": eot}
    assert settings("gpt_oss", 90, **stated)["eos_token_id"] == [90, 93, 91]


def test_sampling_is_that_of_the_file():
    stated = settings(
        general__sampling__temp=0.7, general__sampling__top_k=20, general__sampling__penalty_repeat=1.5,
        general__sampling__mirostat=2,
    )  # fmt: skip
    assert {name: stated[name] for name in ("temperature", "top_k", "repetition_penalty", "do_sample")} == {
        "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.5, "do_sample": True,
    }  # fmt: skip
    (named,) = unapplied_settings(stated)
    assert "general.sampling.mirostat" in named


def test_a_penalty_alone_draws_nothing():
    assert "do_sample" not in settings(general__sampling__penalty_repeat=1.5)
    assert settings(general__sampling__temp=0.0)["do_sample"] is False


def test_suppressed_tokens_are_suppressed():
    assert settings(tokenizer__ggml__suppress_tokens=[3, 4])["suppress_tokens"] == [3, 4]


def test_more_suppressed_tokens_than_are_kept_are_refused():
    long = header()
    long.array_lengths["tokenizer.ggml.suppress_tokens"] = MAX_KEPT_ELEMENTS + 1
    config = SimpleNamespace(model_type="llama", bos_token_id=1, eos_token_id=2, pad_token_id=None)
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.suppress_tokens"):
        generation_settings(long, config, IDS.get)


def test_they_are_written_where_they_are_read(tmp_path):
    path = write_vocabulary(tmp_path / "m.gguf", "gpt2", {"pre": "qwen2", "suppress_tokens": [3, 4]})
    written = json.loads((open_checkpoint(path, tmp_path / "cache").config_dir / "generation_config.json").read_text())
    assert written["suppress_tokens"] == [3, 4]


@pytest.mark.parametrize("default", [None, "{{ 1 }}"], ids=["none by default", "one by default"])
def test_named_templates_are_the_files(tmp_path, default):
    named = {"rag": "{{ 2 }}", "tool_use": "{# " + "x" * MAX_KEPT_TEXT + " #}{{ 3 }}"}
    keys = {f"chat_template.{name}": text for name, text in named.items()} | ({"chat_template": default} if default else {})
    path = write_vocabulary(tmp_path / "m.gguf", "gpt2", {"pre": "qwen2", **keys})
    tokenizer = AutoTokenizer.from_pretrained(open_checkpoint(path, tmp_path / "cache").tokenizer_dir)
    assert tokenizer.chat_template == named | ({"default": default} if default else {})
