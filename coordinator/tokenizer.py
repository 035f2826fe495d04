"""Text to token ids and back, as the model was trained with it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from layermesh.coordinator.chat import render_chat
from layermesh.coordinator.conversation import NO_OPTIONS, ChatOptions, Message, as_conversation, check_messages
from layermesh.coordinator.tokenizer_check import check_tokenizer_file
from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.errors import TokenizerError, UsageError


class Tokenizer:
    """A model's tokenizer: a thin face of the one transformers loads."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        """Take a tokenizer of transformers as it is; `model` is its name in messages."""
        self._tokenizer = tokenizer
        self._model = model
        added = tokenizer.added_tokens_decoder.items()
        self._special_ids = frozenset(tokenizer.all_special_ids) | {id_ for id_, token in added if token.special}
        self._templates = _named_templates(tokenizer.chat_template, model)

    @classmethod
    def load(cls, tokenizer_dir: Path | None, model: str) -> Self:
        """Return the tokenizer whose files lie in `tokenizer_dir`, as transformers reads it, but for code of the model.

        Nothing is fetched. Raises TokenizerError when there is none, or it cannot be used.
        """
        if tokenizer_dir is None:
            raise _unusable(model, "it comes without a tokenizer")
        from transformers import AutoTokenizer

        try:
            check_tokenizer_file(tokenizer_dir / "tokenizer.json")
            loaded = AutoTokenizer.from_pretrained(tokenizer_dir, trust_remote_code=False, local_files_only=True)
            loaded.decode(loaded.encode("a"))
            loaded.chat_template = loaded.chat_template or _template_beside(tokenizer_dir)
        except BaseException as error:  # whatever transformers, tokenizers, sentencepiece and json make of bad files
            if not _is_fault(error):
                raise
            raise _unusable(model, f"its tokenizer in {tokenizer_dir} does not load ({_first_line(error)})") from error
        if len(loaded) == len(loaded.get_added_vocab()):
            # What transformers makes of some models' folders that hold no tokenizer files.
            raise _unusable(model, f"{tokenizer_dir} holds no vocabulary")
        return cls(loaded, model)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the model's conversations; all of them where none is the default, None if it has none."""
        return self._templates.get("default") or "\n".join(self._templates.values()) or None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a form for conversations."""
        return bool(self._templates)

    def choose_template(self, options: ChatOptions) -> str | None:
        """Return the template to render with: the one asked for, else the model's own for tools or by default, if any.

        Raises UsageError where it is not clear which, or there is none by the name asked for.
        """
        asked, own = options.template, self._templates
        if asked is not None and (asked in own or "{{" in asked or "{%" in asked):
            return own.get(asked, asked)
        names = ", ".join(sorted(own))
        if asked is not None:
            known = f"it has {names}" if own else "it has none"
            raise UsageError(
                f"{self._model} has no chat template {asked[:40]!r}: {known}. Use one of these, the text of a template, or "
                "--chat-template ./FILE.jinja."
            )
        if options.tools is not None and "tool_use" in own:
            return own["tool_use"]
        if own and "default" not in own:
            raise UsageError(
                f"{self._model} has several chat templates and none is its default: {names}. "
                f"Choose one: --chat-template {min(own)}, or give the prompt without any: --raw."
            )
        return own.get("default")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the tokenizer's own end of text, if it has one."""
        eos_token_id: int | None = self._tokenizer.eos_token_id
        return eos_token_id

    def token_id(self, token: str) -> int | None:
        """Return the id of the token written exactly so, or None."""
        token_id: int | None = self._tokenizer.convert_tokens_to_ids(token)
        # An unknown token has the id of <unk>.
        known = token_id is not None and self._tokenizer.convert_ids_to_tokens(token_id) == token
        return token_id if known else None

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a mark for the model, which is never shown as text."""
        return token_id in self._special_ids

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        raw: bool = False,
        chat: ChatOptions = NO_OPTIONS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> list[int]:
        """Return the ids of a prompt: a text or a conversation.

        A text becomes what the user says, after `system`, if there is a chat template; otherwise, and if `raw`,
        it is taken as it is. `tell` is given what has no effect. Raises UsageError or TokenizerError.
        """
        if not isinstance(prompt, str):
            if system is not None:
                raise UsageError("a conversation has its own system message: leave out --system.")
            return self.encode_chat(prompt, chat, tell)
        if not raw and self.choose_template(chat) is not None:
            return self.encode_chat(as_conversation(prompt, system), chat, tell)
        why = "--raw leaves it out" if raw else f"{self._model} has none"
        if system is not None:
            raise UsageError(f"a system message needs a chat template, and {why}. Leave out --system.")
        if chat.given:
            raise UsageError(f"{', '.join(chat.given)} needs a chat template, and {why}. Leave out one of the two.")
        return self.encode_text(prompt)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of `text` as it is, with the special tokens the tokenizer itself puts around a text.

        Raises UsageError for text that is not Unicode.
        """
        return self._ids(text, add_special_tokens=True)

    def encode_chat(
        self, messages: Sequence[Message], options: ChatOptions = NO_OPTIONS, tell: Callable[[str], None] = lambda _: None
    ) -> list[int]:
        """Return the ids of a conversation, in the form of the model's chat template, up to where the model answers.

        Raises UsageError if it is no conversation, or not one for this template; TokenizerError if there is no
        template, or none that can be used.
        """
        conversation = check_messages(messages)
        template = self.choose_template(options)
        if template is None:
            raise TokenizerError(
                f"{self._model} has no chat template, so it takes no conversation. Give it a text to continue instead."
            )
        text = render_chat(template, conversation, self._tokenizer.special_tokens_map, self._model, options, tell)
        return self._ids(text, add_special_tokens=False)  # the template wrote them

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the prompt is not Unicode text at character {error.start}: give it as UTF-8.") from error
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:  # a pattern that would take for ever ends in one of Rust's panics
            if not _is_fault(error):
                raise
            raise _unusable(self._model, f"its tokenizer fails at this prompt ({_first_line(error)})") from error
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the tokens, without the special ones.

        The spaces are left as they come: transformers' clean-up of them rewrites text that was already shown.
        """
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _named_templates(templates: object, model: str) -> dict[str, str]:
    """Return the templates of transformers' tokenizer by name; a single one is the default."""
    named = templates if isinstance(templates, Mapping) else {"default": templates} if templates else {}
    if not all(isinstance(template, str) for template in named.values()):
        raise TokenizerError(f"the chat template of {model} is no text. Correct its tokenizer_config.json.")
    return dict(named)


def _template_beside(folder: Path) -> object:
    """Return what chat_template.json says, where processors of older models keep the template; None without one."""
    path = folder / "chat_template.json"
    if not path.is_file():
        return None
    template = read_object(path).get("chat_template")
    return {one["name"]: one["template"] for one in template} if isinstance(template, list) else template


def _is_fault(error: BaseException) -> bool:
    """Whether an error is one of the files: panics of Rust code are no Exception, but they are."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    said = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {said[:200]}"


def _unusable(model: str, why: str) -> TokenizerError:
    return TokenizerError(
        f"no text can be given to {model}: {why}. Put the tokenizer of the model (tokenizer.json and "
        "tokenizer_config.json) beside its weights, or give token ids: --prompt-ids 1,2,3."
    )
