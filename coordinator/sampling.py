"""How the next token is chosen from a model's logits."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from layermesh.shared.errors import ModelError

# What transformers samples with when a model's generation_config.json leaves it open.
_SAMPLING_TEMPERATURE: Final = 1.0
_SAMPLING_TOP_K: Final = 50
_SEED_BITS: Final = 32  # torch's CPU generator looks at no more


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The choices that decide which token follows; `temperature` 0 takes the most likely one, `top_k` 0 keeps all.

    `seed` makes sampling repeatable. Raises ValueError for a value that cannot be meant.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int

    def __post_init__(self) -> None:
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
    """Chooses the tokens of one sequence, with transformers' own logits processors in the order `generate` has them."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._params = params
        self._processors = _logits_processors(params)
        self._seen = torch.tensor([sorted(set(prompt_ids))], dtype=torch.long)  # [1, different tokens so far]
        self._generator = torch.Generator().manual_seed(params.seed)

    def sample(self, logits: torch.Tensor) -> int:
        """Return the token that follows, given the logits of the last position: [vocab], any float type and device.

        Raises ModelError for logits with a NaN or an infinity in them, or nothing but minus infinity.
        """
        scores = logits.detach().to("cpu", torch.float32)[None]  # [1, vocab]
        highest, likeliest = scores.max(dim=-1)  # in one pass; of several the first
        _check_finite(highest)
        for process in self._processors:
            scores = process(self._seen, scores)
        token = int(likeliest) if self._params.greedy and not self._processors else self._choose(scores)
        if not (self._seen == token).any():
            self._seen = torch.cat([self._seen, torch.tensor([[token]])], dim=1)
        return token

    def _choose(self, scores: torch.Tensor) -> int:
        if self._params.greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))


def _check_finite(highest: torch.Tensor) -> None:
    # NaN and +inf win every maximum, and -inf wins it only when there is nothing else.
    if not math.isfinite(float(highest)):
        raise ModelError(
            "the model's logits are not numbers (NaN or infinite), so no token can be chosen from them: its weights "
            "are damaged, or they overflow in this type. Try --dtype float32 or --dtype bfloat16."
        )


def _logits_processors(params: SamplingParams) -> list[Any]:
    from transformers.generation import logits_process as theirs

    processors: list[Any] = []
    if params.repetition_penalty != 1:
        processors.append(theirs.RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.greedy:
        return processors
    if params.temperature != 1:
        processors.append(theirs.TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k > 0:
        processors.append(theirs.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(float(params.top_p)))
    if params.min_p > 0:
        processors.append(theirs.MinPLogitsWarper(float(params.min_p)))
    return processors
