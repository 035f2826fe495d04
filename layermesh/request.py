"""What is asked of a model: a prompt and settings, made into ids, limits and a way to choose."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeGuard, cast

from layermesh.coordinator.conversation import ChatOptions, Message
from layermesh.coordinator.generation import Limits
from layermesh.coordinator.generation_config import AnswerLimits, is_encodable, unapplied_settings
from layermesh.coordinator.journal import Beginning
from layermesh.coordinator.sampling import SamplingParams
from layermesh.coordinator.score_settings import check_score_ids
from layermesh.coordinator.stop_tokens import stop_token_ids
from layermesh.coordinator.text_stream import TextStream
from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.local import LocalModel
from layermesh.settings import GenerationSettings, Prompt, check_length, check_prompt, check_sampling, is_whole, sampling
from layermesh.shared.errors import BudgetError, CheckpointError, TokenizerError, UsageError
from layermesh.shared.model.context import why_not_longer

DEFAULT_NEW_TOKENS = 512
LEAST_NEW_TOKENS = 64  # what an answer may shrink to where memory is short and nobody asked for a length


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that can be run: its ids, when the answer ends, how tokens are chosen and what makes text of them.

    `flexible` is whether the answer may be shorter than its limit where memory is short.
    """

    prompt_ids: list[int]
    limits: Limits
    flexible: bool
    params: SamplingParams
    text: TextStream
    stop: tuple[str, ...] = ()

    @classmethod
    def again(cls, local: LocalModel, beginning: Beginning) -> "Request":
        """Return what was asked when an answer began that now goes on."""
        text = TextStream(local.tokenizer, beginning.stop)
        return cls(list(beginning.prompt_ids), beginning.limits, False, beginning.params, text, beginning.stop)

    def beginning(self, model: str, options: Mapping[str, object], limits: Limits, chunk: int) -> Beginning:
        """Return what must be known for the answer to go on later."""
        return Beginning(model, options, tuple(self.prompt_ids), limits, self.params, self.stop, chunk)

    @classmethod
    def make(cls, local: LocalModel, prompt: Prompt, settings: GenerationSettings) -> "Request":
        """Return what `prompt` and `settings` ask of `local`; raises UsageError, TokenizerError or CheckpointError."""
        max_new_tokens = settings.get("max_new_tokens")
        tokenizer = _tokenizer(local, prompt)
        chat = ChatOptions.of(settings)
        prompt_ids = _encode(local, prompt, tokenizer, chat, system=settings.get("system"), raw=settings.get("raw", False))
        params, own = _params(local, settings), _own_limits(local)
        stop, stop_ids = _ends(local, settings, tokenizer, own)
        limits = Limits(_most_new_tokens(local, len(prompt_ids), max_new_tokens, own), stop_ids)
        for line in unapplied_settings(local.generation_config):
            local.warn_once(f"{line}. Answers may differ from those of transformers.")
        return cls(prompt_ids, limits, max_new_tokens is None, params, TextStream(tokenizer, stop), stop)

    def fit(self, reserve: Callable[[int, int], int]) -> tuple[Limits, int]:
        """Return the limits for which `reserve` finds room, and what it returns.

        It is given the tokens of prompt and answer and those of the prompt. An answer whose length nobody asked for may be cut
        to what fits. Raises BudgetError.
        """
        limits, num_prompt = self.limits, len(self.prompt_ids)
        while True:
            try:
                return limits, reserve(num_prompt + limits.max_new_tokens, num_prompt)
            except BudgetError:
                if not self.flexible or limits.max_new_tokens // 2 < LEAST_NEW_TOKENS:
                    raise
                limits = replace(limits, max_new_tokens=limits.max_new_tokens // 2)


def _params(local: LocalModel, settings: GenerationSettings) -> SamplingParams:
    """Put together what was given and what the model's generation_config.json says; each answers for its own."""
    check_sampling(settings)
    with _naming_the_file(local):
        params = SamplingParams.resolve(local.generation_config, **sampling(settings))
        check_score_ids(params.score_settings, local.definition.vocab_size)
        return params


def _own_limits(local: LocalModel) -> AnswerLimits:
    with _naming_the_file(local):
        return AnswerLimits.of(local.generation_config)


@contextmanager
def _naming_the_file(local: LocalModel) -> Iterator[None]:
    """Turn a complaint about a value of generation_config.json into CheckpointError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        path = local.checkpoint.config_dir / "generation_config.json"
        path = path if path.is_file() else path.with_name("config.json")
        raise CheckpointError(f"{path} cannot be meant so: {error}. Correct or remove it.") from error


def _ends(
    local: LocalModel, settings: GenerationSettings, tokenizer: Tokenizer | None, own: AnswerLimits
) -> tuple[tuple[str, ...], frozenset[int]]:
    """Return the texts and the token ids that end the answer; a caller's texts come instead of the model's.

    A text that is a special token counts as its id: special tokens never become text.
    """
    stop, ignores = _stop_strings(settings.get("stop", ())), settings.get("ignore_eos", False)
    if not stop and not ignores and own.stop_strings:
        if tokenizer is None:
            local.warn_once("stop_strings of generation_config.json is not applied: the model has no tokenizer.")
        else:
            stop = own.stop_strings
    marks = {tokenizer.token_id(text) for text in stop} if tokenizer is not None else set()
    ids = frozenset(id_ for id_ in marks if id_ is not None and tokenizer is not None and tokenizer.is_special(id_))
    if ignores:
        return stop, ids
    in_chat = not settings.get("raw", False)
    asked = settings.get("chat_template")
    template = tokenizer.choose_template(ChatOptions(asked)) if tokenizer is not None and in_chat and asked else None
    return stop, ids | stop_token_ids(local.generation_config, local.config, tokenizer, chat=in_chat, template=template)


def _tokenizer(local: LocalModel, prompt: Prompt) -> Tokenizer | None:
    """The tokenizer; a model may do without one when it is given token ids."""
    if _is_ids(prompt) and local.checkpoint.tokenizer_dir is None:
        return None
    if local.tokenizer is None and local.checkpoint.tokenizer_error is not None:
        raise TokenizerError(
            f"no text can be given to {local.name}: {local.checkpoint.tokenizer_error}. Give token ids: --prompt-ids 1,2,3."
        )
    return local.tokenizer or Tokenizer.load(None, local.name)


def _encode(
    local: LocalModel, prompt: Prompt, tokenizer: Tokenizer | None, chat: ChatOptions, *, system: str | None, raw: bool
) -> list[int]:
    if _is_ids(prompt):
        if system is not None:
            raise UsageError("a system message goes with a text, not with token ids. Leave out --system.")
        if chat.given:
            raise UsageError(f"{', '.join(chat.given)} goes with a text or a conversation, not with token ids. Remove it.")
        token_ids = list(prompt)
    else:
        if isinstance(prompt, str):
            check_prompt(prompt, raw=raw)
        assert tokenizer is not None
        token_ids = tokenizer.encode(
            cast("str | Sequence[Message]", prompt), system=system, raw=raw, chat=chat, tell=local.warn_once
        )
    check_prompt(token_ids, raw=raw)
    vocab_size = local.definition.vocab_size
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise UsageError(
            f"token ids run from 0 to {vocab_size - 1} for {local.name}; the prompt has {min(token_ids)} to {max(token_ids)}."
        )
    return token_ids


def _most_new_tokens(local: LocalModel, num_prompt: int, max_new_tokens: int | None, own: AnswerLimits) -> int:
    """Return what was asked for, else what the model's generation_config.json says, within the context and its `max_length`."""
    check_length(max_new_tokens)
    wanted = max_new_tokens or own.max_new_tokens or DEFAULT_NEW_TOKENS
    if max_new_tokens is None and own.max_new_tokens is None and own.max_length is not None:
        if num_prompt >= own.max_length:
            raise UsageError(
                f"the prompt has {num_prompt} tokens, and generation_config.json of {local.name} allows {own.max_length}, the "
                "answer included. Set a length for the answer: --max-new-tokens 64."
            )
        wanted = min(wanted, own.max_length - num_prompt)
    room = local.context_length
    if room is not None and num_prompt >= room:
        more = "" if why_not_longer(local.definition) else f", or allow more with --context {num_prompt + wanted}"
        raise UsageError(
            f"the prompt has {num_prompt} tokens and {local.name} takes at most {room}, its answer included. "
            f"Shorten the prompt{more}."
        )
    return wanted if room is None else min(wanted, room - num_prompt)


def _is_ids(prompt: Prompt) -> TypeGuard[Sequence[int]]:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes) and all(map(is_whole, prompt))


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(string, str) for string in strings):
        raise UsageError(f"stop strings are text, not {stop!r}.")
    if broken := [string for string in strings if not is_encodable(string)]:
        raise UsageError(f"a stop string holds characters that are no Unicode: {ascii(broken[0])[:80]}. Correct it.")
    return strings
