"""Settings of generation_config.json that change scores, checked here and applied by transformers' own processors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from layermesh.shared.errors import CheckpointError

Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class SequenceBounds:
    """What processors need to know of a sequence: its prompt, the limit and the ends of its answer, the number of ids.

    `end_ids` are the ends that generation_config.json states, of which `stop_ids` has more.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    stop_ids: Sequence[int]
    vocab_size: int
    is_first_forced: bool = False
    end_ids: Sequence[int] = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_whole(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_whole, value))


def _are_sequences(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_sequence, value))


def _is_bias(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_sequence(pair[0]) and _is_number(pair[1]) for pair in value
    )


def _is_decay(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1])


def _is_watermark(value: Any) -> bool:
    kinds: dict[str, Check] = {"greenlist_ratio": _is_share, "bias": _is_number, "hashing_key": _is_whole}
    kinds |= {
        "seeding_scheme": ("lefthash", "selfhash").__contains__,
        "context_width": lambda width: _is_whole(width) and width > 0,
    }
    return isinstance(value, dict) and all(name in kinds and kinds[name](own) for name, own in value.items())


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


_ENDS: Final = "eos_token_id"  # kept with the settings that exempt or raise the ends that generation_config.json states

# What each must be, in words and as a test, and the values that change nothing.
_KINDS: Final[Mapping[str, tuple[str, Check, tuple[Any, ...]]]] = {
    "sequence_bias": ("a list of [token ids, number] pairs", _is_bias, ([],)),
    "encoder_repetition_penalty": ("a number above 0", _is_positive, (1,)),
    "no_repeat_ngram_size": ("a whole number", _is_whole, (0,)),
    "encoder_no_repeat_ngram_size": ("a whole number", _is_whole, (0,)),
    "bad_words_ids": ("a list of lists of token ids", _are_sequences, ([],)),
    "min_length": ("a whole number", _is_whole, (0,)),
    "min_new_tokens": ("a whole number", _is_whole, (0,)),
    "forced_bos_token_id": ("a token id", _is_whole, ()),
    "forced_eos_token_id": ("a token id or a list of them", lambda ids: _is_whole(ids) or _is_sequence(ids), ()),
    "remove_invalid_values": ("true or false", _is_truth, (False,)),
    "exponential_decay_length_penalty": ("[a whole number, a number]", _is_decay, ()),
    "suppress_tokens": ("a list of token ids", _is_token_list, ([],)),
    "begin_suppress_tokens": ("a list of token ids", _is_token_list, ([],)),
    "top_h": ("a number from 0 to 1", _is_share, ()),
    "typical_p": ("a number from 0 to 1", _is_share, (1,)),
    "epsilon_cutoff": ("a number from 0 to 1", _is_share, (0, 1)),
    "eta_cutoff": ("a number from 0 to 1", _is_share, (0, 1)),
    "watermarking_config": ("the settings of transformers' WatermarkingConfig", _is_watermark, ()),
    "renormalize_logits": ("true or false", _is_truth, (False,)),
    _ENDS: ("a list of token ids", _is_token_list, ()),
}  # fmt: skip
SCORE_SETTINGS: Final = frozenset(_KINDS) - {_ENDS}
_OFF_BELOW_ONE: Final = frozenset(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"))
_OF_SAMPLING: Final = frozenset(
    ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
)


def read_score_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a generation_config.json that change scores, without the ones that have no effect.

    Raises ValueError for a value of another kind than its setting has.
    """
    given = {name: generation_config[name] for name in SCORE_SETTINGS if generation_config.get(name) is not None}
    given = {name: value for name, value in given.items() if not (name in _OFF_BELOW_ONE and _is_integer(value) and value < 1)}
    check_score_settings(given)
    settings = {name: given[name] for name in _KINDS if name in given and given[name] not in _KINDS[name][2]}
    ends = generation_config.get(_ENDS)
    if settings.keys() & {"bad_words_ids", "exponential_decay_length_penalty"} and ends is not None:
        settings[_ENDS] = ends if isinstance(ends, list) else [ends]
        check_score_settings(settings)
    return settings


def check_score_settings(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that is unknown, or has a value of another kind."""
    for name, value in given.items():
        if name not in _KINDS:
            raise ValueError(f"{name[:40]} is no setting that changes scores")
        what, is_meant, _ = _KINDS[name]
        if not is_meant(value):
            text = repr(value)
            raise ValueError(f"{name} must be {what}, not {text if len(text) <= 60 else f'{text[:57]}...'}")
    for name in ("top_h", "typical_p"):
        if given.get(name) == 0:
            raise ValueError(f"{name} must be more than 0, not 0")


def check_score_ids(given: Mapping[str, Any], vocab_size: int) -> None:
    """Raise ValueError for token ids that the model does not have, where transformers could not apply them.

    Ids that are only ever suppressed may lie beyond the vocabulary: nothing chooses them.
    """
    forced = given.get("forced_eos_token_id", [])
    sequences = {
        "sequence_bias": [id_ for ids, _ in given.get("sequence_bias", ()) for id_ in ids],
        "bad_words_ids": [id_ for ids in given.get("bad_words_ids", ()) for id_ in ids],
        "forced_bos_token_id": [given["forced_bos_token_id"]] if "forced_bos_token_id" in given else [],
        "forced_eos_token_id": forced if isinstance(forced, list) else [forced],
    }
    for name, ids in sequences.items():
        if ids and max(ids) >= vocab_size:
            raise ValueError(f"{name} has token id {max(ids)}, and the model's ids run from 0 to {vocab_size - 1}")


def score_processors(settings: Mapping[str, Any], bounds: SequenceBounds, *, sampled: bool) -> list[Any]:
    """Return transformers' processors for `settings`, in the order in which its `generate` applies them.

    Settings of sampling are left out where the likeliest token is taken. Raises CheckpointError where transformers refuses.
    """
    from layermesh.shared.transformers_api import logits_process as theirs

    ends = settings.get(_ENDS)
    own_ends = bounds.stop_ids if ends is None else [id_ for id_ in ends if 0 <= id_ < bounds.vocab_size]
    bounds = replace(bounds, end_ids=own_ends)
    processors = []
    for name, build in _BUILDERS.items():
        if name not in settings or (name in _OF_SAMPLING and not sampled):
            continue
        try:
            processor = build(theirs, settings[name], bounds)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{name} of generation_config.json cannot be applied: {str(error)[:200]}. Correct it."
            ) from error
        if processor is not None:
            processors.append(processor)
    return processors


def _prompt(bounds: SequenceBounds) -> Any:
    import torch

    return torch.tensor([list(bounds.prompt_ids)], dtype=torch.long)


def _bad_words(theirs: Any, words: list[list[int]], bounds: SequenceBounds) -> Any:
    """transformers lets nobody forbid the end alone, and takes no empty list."""
    left = [word for word in words if not (len(word) == 1 and word[0] in bounds.end_ids)]
    return theirs.NoBadWordsLogitsProcessor(left) if left else None


def _begin_suppress(theirs: Any, ids: list[int], bounds: SequenceBounds) -> Any:
    """After a forced first token, which a prompt of one id gets, the beginning is one token later."""
    num_prompt = len(bounds.prompt_ids)
    return theirs.SuppressTokensAtBeginLogitsProcessor(ids, num_prompt + (num_prompt == 1 and bounds.is_first_forced))


def _forced_eos(theirs: Any, ids: int | list[int], bounds: SequenceBounds) -> Any:
    return theirs.ForcedEOSTokenLogitsProcessor(len(bounds.prompt_ids) + bounds.max_new_tokens, ids)


def _until(theirs: Any, length: int, bounds: SequenceBounds) -> Any:
    return theirs.MinLengthLogitsProcessor(length, list(bounds.stop_ids)) if bounds.stop_ids else None


def _until_new(theirs: Any, length: int, bounds: SequenceBounds) -> Any:
    ends = list(bounds.stop_ids)
    return theirs.MinNewTokensLengthLogitsProcessor(len(bounds.prompt_ids), length, ends) if ends else None


def _decay(theirs: Any, penalty: list[Any], bounds: SequenceBounds) -> Any:
    ends = list(bounds.end_ids)
    return theirs.ExponentialDecayLengthPenalty(tuple(penalty), ends, len(bounds.prompt_ids)) if ends else None


def _watermark(_: Any, values: Mapping[str, Any], bounds: SequenceBounds) -> Any:
    from transformers import WatermarkingConfig

    return WatermarkingConfig(**values).construct_processor(bounds.vocab_size, "cpu")


_BUILDERS: Final[Mapping[str, Callable[[Any, Any, SequenceBounds], Any]]] = {  # the order is that of transformers
    "sequence_bias": lambda theirs, pairs, _: theirs.SequenceBiasLogitsProcessor([[ids, float(bias)] for ids, bias in pairs]),
    "encoder_repetition_penalty": lambda theirs, penalty, bounds: theirs.EncoderRepetitionPenaltyLogitsProcessor(
        float(penalty), _prompt(bounds)
    ),
    "repetition_penalty": lambda theirs, penalty, _: theirs.RepetitionPenaltyLogitsProcessor(float(penalty)),
    "no_repeat_ngram_size": lambda theirs, size, _: theirs.NoRepeatNGramLogitsProcessor(size),
    "encoder_no_repeat_ngram_size": lambda theirs, size, bounds: (
        theirs.EncoderNoRepeatNGramLogitsProcessor(size, _prompt(bounds)) if size <= len(bounds.prompt_ids) else None
    ),
    "bad_words_ids": _bad_words,
    "min_length": _until,
    "min_new_tokens": _until_new,
    "forced_bos_token_id": lambda theirs, id_, _: theirs.ForcedBOSTokenLogitsProcessor(id_),
    "forced_eos_token_id": _forced_eos,
    "remove_invalid_values": lambda theirs, *_: theirs.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": _decay,
    "suppress_tokens": lambda theirs, ids, _: theirs.SuppressTokensLogitsProcessor(ids),
    "begin_suppress_tokens": _begin_suppress,
    "temperature": lambda theirs, value, _: theirs.TemperatureLogitsWarper(float(value)),
    "top_h": lambda theirs, value, _: theirs.TopHLogitsWarper(float(value)),
    "top_k": lambda theirs, value, _: theirs.TopKLogitsWarper(value),
    "top_p": lambda theirs, value, _: theirs.TopPLogitsWarper(float(value)),
    "min_p": lambda theirs, value, _: theirs.MinPLogitsWarper(float(value)),
    "typical_p": lambda theirs, value, _: theirs.TypicalLogitsWarper(float(value)),
    "epsilon_cutoff": lambda theirs, value, _: theirs.EpsilonLogitsWarper(float(value)),
    "eta_cutoff": lambda theirs, value, _: theirs.EtaLogitsWarper(float(value)),
    "watermarking_config": _watermark,
    "renormalize_logits": lambda theirs, *_: theirs.LogitNormalization(),
}  # fmt: skip
