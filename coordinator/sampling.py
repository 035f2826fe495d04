"""How the next token is chosen from a model's logits."""

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from layermesh.coordinator.score_settings import (
    SequenceBounds,
    check_score_settings,
    read_score_settings,
    score_processors,
)
from layermesh.shared.errors import ModelError

# What transformers samples with when a model's generation_config.json leaves it open.
_SAMPLING_TEMPERATURE: Final = 1.0
_SAMPLING_TOP_K: Final = 50
_SEED_BITS: Final = 32  # torch's CPU generator looks at no more


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The choices that decide which token follows; `temperature` 0 takes the most likely one, `top_k` 0 keeps all.

    `seed` makes sampling repeatable. `score_settings` are settings of the model's generation_config.json that a caller has no
    flags for, in plain JSON (`score_settings.py`). Raises ValueError for a value that cannot be meant.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    score_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_score_settings(self.score_settings)
        # A temperature between 0 and 1e-5 would make the scaled logits overflow.
        if self.temperature != 0 and not 1e-5 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or at least 0.00001, not {self.temperature!r}")
        if not (isinstance(self.top_k, int) and self.top_k >= 0):
            raise ValueError(f"top_k must be a whole number, 0 (off) or more, not {self.top_k!r}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie between 0 and 1, not {self.top_p!r}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie between 0 and 1, not {self.min_p!r}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be more than 0, not {self.repetition_penalty!r}")
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed!r}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, and nothing is left to chance."""
        return self.temperature == 0

    @classmethod
    def resolve(
        cls,
        generation_config: Mapping[str, Any],
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> "SamplingParams":
        """Return the caller's values, and for those left None what the model's generation_config.json says.

        As in transformers, a model that does not say `do_sample` is greedy, unless the caller gives a temperature;
        one that samples does so at temperature 1.0 among the 50 most likely tokens if it does not say otherwise.
        Without a `seed` a fresh one of 32 bits is drawn. Raises ValueError for a value that cannot be meant.
        """
        if temperature is None and not generation_config.get("do_sample"):
            temperature = 0.0
        return cls(
            temperature=_number(temperature, generation_config, "temperature", _SAMPLING_TEMPERATURE),
            top_k=_number(top_k, generation_config, "top_k", _SAMPLING_TOP_K),
            top_p=_number(top_p, generation_config, "top_p", 1.0),
            min_p=_number(min_p, generation_config, "min_p", 0.0),
            repetition_penalty=_number(repetition_penalty, generation_config, "repetition_penalty", 1.0),
            seed=secrets.randbits(_SEED_BITS) if seed is None else seed,
            score_settings=read_score_settings(generation_config),
        )


def _number(given: float | None, config: Mapping[str, Any], name: str, otherwise: float) -> Any:
    """Return what the caller gave, else what the model's config says under `name`, else `otherwise`."""
    value = given if given is not None else config.get(name)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return value


class Sampler:
    """Chooses the tokens of one sequence, with transformers' own logits processors in the order `generate` has them.

    `max_new_tokens` and `stop_ids` are the limits of the answer, which some processors look at.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int = 1 << 40,
        stop_ids: Collection[int] = (),
    ) -> None:
        self._params = params
        self._prompt_ids = tuple(prompt_ids)
        self._max_new_tokens = max_new_tokens
        self._stop_ids = frozenset(stop_ids)
        self._processors: list[Any] | None = None  # until the number of scores is known
        self._ids = torch.tensor([list(prompt_ids)], dtype=torch.long)  # [1, tokens so far]
        self._generator = torch.Generator().manual_seed(params.seed)

    def sample(self, logits: torch.Tensor) -> int:
        """Return the token that follows, given the logits of the last position: [vocab], any float type and device.

        Raises ModelError for logits with a NaN or an infinity in them, or nothing but minus infinity, and where the model's
        settings leave no token to choose.
        """
        scores = logits.detach().to("cpu", torch.float32)[None]  # [1, vocab]
        if self._processors is None:
            self._processors = self._make_processors(scores.shape[-1])
        highest, likeliest = scores.max(dim=-1)  # in one pass; of several the first
        if not self._params.score_settings.get("remove_invalid_values"):
            _check_finite(highest)
        if self._processors:
            for process in self._processors:
                scores = process(self._ids, scores)
            highest, likeliest = scores.max(dim=-1)
            _check_left(highest)
        token = int(likeliest) if self._params.greedy else self._draw(scores)
        if self._processors:  # nothing else looks at them
            self._ids = torch.cat([self._ids, torch.tensor([[token]])], dim=1)
        return token

    def overrule(self, token_id: int) -> None:
        """Go on as if `token_id` had been chosen last."""
        if self._processors:
            self._ids[0, -1] = token_id

    def _draw(self, scores: torch.Tensor) -> int:
        certain = scores.clamp(max=torch.finfo(scores.dtype).max)  # a bias may make a score infinite
        return int(torch.multinomial(certain.softmax(-1), 1, generator=self._generator))

    def _make_processors(self, vocab_size: int) -> list[Any]:
        params = self._params
        settings = {**params.score_settings, **_effective(params)}
        bounds = SequenceBounds(
            self._prompt_ids,
            self._max_new_tokens,
            sorted(id_ for id_ in self._stop_ids if id_ < vocab_size),
            vocab_size,
            is_first_forced="forced_bos_token_id" in settings,
        )
        return score_processors(settings, bounds, sampled=not params.greedy)


def _effective(params: SamplingParams) -> dict[str, Any]:
    """Return the values that a caller has flags for, without those that change nothing."""
    changing = {
        "repetition_penalty": params.repetition_penalty != 1,
        "temperature": params.temperature != 1,
        "top_k": params.top_k > 0,
        "top_p": params.top_p < 1,
        "min_p": params.min_p > 0,
    }
    return {name: getattr(params, name) for name, changes in changing.items() if changes}


def _check_finite(highest: torch.Tensor) -> None:
    # NaN and +inf win every maximum, and -inf wins it only when there is nothing else.
    if not math.isfinite(float(highest)):
        raise ModelError(
            "the model's logits are not numbers (NaN or infinite), so no token can be chosen from them: its weights "
            "are damaged, or they overflow in this type. Try --dtype float32 or --dtype bfloat16."
        )


def _check_left(highest: torch.Tensor) -> None:
    if not float(highest) > -math.inf:
        raise ModelError(
            "no token can be chosen: the model's generation_config.json forbids every one that could follow. "
            "Correct its suppress_tokens, bad_words_ids and the like, or remove them."
        )
