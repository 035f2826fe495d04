"""One sequence at one stage: its cache, and what transformers carries from call to call."""

from typing import Any

import torch
from transformers import Cache

from layermesh.shared.frames import Frame, SessionId
from layermesh.shared.model.caches import preallocate
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.lean import lean_layers
from layermesh.shared.spans import LayerSpan
from layermesh.shared.transformers_api import CACHE_NAMES, next_arguments, outputs_with_cache
from layermesh.worker.placeholders import fill_placeholders


class Session:
    """Prepares the calls of a model's forward as transformers' own generate would, frame by frame.

    Layers outside `span` run elsewhere, and `num_tokens` is how long the sequence is expected to become.
    """

    def __init__(
        self, session_id: SessionId, definition: ModelDefinition, span: LayerSpan, device: torch.device, num_tokens: int
    ) -> None:
        self.id = session_id
        self.position = 0
        self._span = span
        self._num_tokens = num_tokens
        self._definition = definition
        self._model = definition.model
        self._device = device
        self._token_ids = torch.empty(1, 0, dtype=torch.long, device=device)  # [1, tokens]
        self._kwargs: dict[str, Any] = {}
        self._outputs: Any = None
        self._passed_by: list[int] = []  # tokens that passed without a call
        self.kept: Any = None  # what a DecodeStep has found of the cache, until a call of the forward may change it

    def inputs(self, frame: Frame) -> dict[str, Any]:
        """Return the arguments for the model's forward on the tokens of `frame`."""
        self.kept = None
        if self._passed_by:
            self._hold_places()
        token_ids, self._passed_by = [*self._passed_by, *frame.token_ids], []
        self._token_ids = torch.cat([self._token_ids, torch.tensor([token_ids], device=self._device)], dim=-1)
        if self.position == 0:
            self._begin()
            return dict(
                self._model.prepare_inputs_for_generation(self._token_ids, is_first_iteration=True, **self._kwargs),
                return_dict=True,
            )
        self._kwargs = next_arguments(self._model, self._outputs, self._kwargs, len(token_ids))
        self._outputs = None
        new = len(frame.token_ids) if self._kwargs.get("use_cache") else None
        return dict(
            self._model.prepare_inputs_for_generation(self._token_ids, next_sequence_length=new, **self._kwargs),
            return_dict=True,
        )

    def finish(self, frame: Frame, outputs: Any) -> None:
        """Note that the frame has passed; `outputs` is what the forward returned, or the cache if it ended early."""
        self.position += len(frame.token_ids)
        ended = outputs is None or isinstance(outputs, Cache)
        self._outputs = outputs_with_cache(outputs) if ended else _without_logits(outputs)
        self._hold_places()

    def pass_by(self, token_id: int) -> None:
        """Note that a token has passed without a call of the model's forward; the cache has what its layers keep."""
        self.position += 1
        self._passed_by.append(token_id)

    @property
    def caches(self) -> list[Cache]:
        """What the layers keep, once the session has begun."""
        carried = dict(self._outputs.items() if self._outputs else ())
        carried |= {name: value for name, value in self._kwargs.items() if value is not None}
        return [carried[name] for name in CACHE_NAMES if isinstance(carried.get(name), Cache)]

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys, values and states that this session keeps."""
        carried = [*self._kwargs.values(), *(self._outputs.values() if self._outputs else ())]
        return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(carried, set())}.values())

    def _hold_places(self) -> None:
        """Make the cache look as if the layers outside the span had run here too, up to `position`."""
        for cache in self.caches:
            fill_placeholders(cache, self._span, self._definition, self.position)

    def _begin(self) -> None:
        def capture(_model: Any, _input_ids: Any, **prepared: Any) -> torch.Tensor:
            names = ("logits_processor", "stopping_criteria", "generation_config", "streamer", "synced_gpus")
            self._kwargs = {name: value for name, value in prepared.items() if name not in names}
            for cache in self.caches:
                preallocate(cache, lean_layers(self._definition), self._num_tokens)
            return self._token_ids

        self._model.generate(
            self._token_ids,
            attention_mask=torch.ones_like(self._token_ids),
            custom_generate=capture,
            max_new_tokens=1,
            do_sample=False,
            use_cache=True,
        )


def _without_logits(outputs: Any) -> Any:
    """Keep of a model's outputs what the next call needs."""
    return type(outputs)(**{name: value for name, value in outputs.items() if name in CACHE_NAMES})


def _tensors(value: Any, seen: set[int]) -> list[torch.Tensor]:
    """Find the tensors in what a cache is made of: objects, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return [value]
    if id(value) in seen or isinstance(value, str | int | float | type(None)):
        return []
    seen.add(id(value))
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item, seen)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item, seen)]
    return _tensors(vars(value), seen) if hasattr(value, "__dict__") else []
