"""Finding out whether a model needs its embeddings anywhere but in front of its first layer, by following them through it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from layermesh.shared.model.definition import ModelDefinition

_META: Final = torch.device("meta")
_NUM_RETURNED: Final = (0, 1, 2, 3)  # by a layer of the families there are: the hidden states alone, or first of a tuple


def needs_embeddings_everywhere(definition: ModelDefinition) -> bool:
    """Tell whether embeddings reach anything but the hidden states that the first layer is given.

    Where they do not, a stage of later layers can do without their table. To be asked of a definition before a stage takes it,
    which stays as it is; runs its forward for one token without weights. A model that cannot be followed is said to need them.
    """
    if not definition.lookups:
        return False
    if any(path.startswith(f"{definition.layers_path}.") for path in definition.lookups):
        return True
    found = (_try(definition, num_returned) for num_returned in _NUM_RETURNED)
    return next((reached for reached in found if reached is not None), True)


def _try(definition: ModelDefinition, num_returned: int) -> bool | None:
    """Return what a probe finds; None where the model cannot do with that many values from its layers."""
    with _untouched(definition.model):
        try:
            return _Probe(definition, num_returned).run()
        except Exception:  # any code of any family, given values it may not expect
            return None


class _Embedded(torch.Tensor):
    """A tensor made of embeddings; whatever is made of it is one too."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        changes_its_first = name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if (changes_its_first and not isinstance(args[0], _Embedded)) or "out" in (kwargs or {}):
            raise NotImplementedError(f"{name} puts embeddings where they cannot be followed")
        made = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        takes_no_values = name.startswith("new_") or name.endswith("_like")
        return made.as_subclass(torch.Tensor) if takes_no_values and isinstance(made, torch.Tensor) else made


class _Undecided(TorchFunctionMode):
    """Lets values that are not there decide nothing: what depends on one is false."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__bool__, torch.Tensor.__contains__) and not isinstance(args[0], _Embedded):
            return False
        return func(*args, **(kwargs or {}))


class _Probe:
    """One run of a model whose layers do nothing and return something new."""

    def __init__(self, definition: ModelDefinition, num_returned: int) -> None:
        self._model = definition.model
        self._vocab_size = definition.vocab_size
        self._num_returned = num_returned
        self._followed: set[str] = set()
        self._lookups = definition.lookups
        self._reached = False
        for path in definition.lookups:
            module = self._model.get_submodule(path)
            module.forward = self._marking(path, module.forward)
        for index, layer in enumerate(definition.layers):
            layer.forward = self._layer(index)
        if definition.head is not None:
            self._model.get_submodule(definition.head).forward = self._head

    def run(self) -> bool:
        """Return whether embeddings were met where they should not be; raises whatever the model does."""
        with warnings.catch_warnings(), torch.no_grad(), _META, _Undecided():
            warnings.simplefilter("ignore")
            outputs = self._model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False, return_dict=True)
        modules = {self._model.get_submodule(path) for path in self._lookups}
        met = {self._model.get_submodule(path) for path in self._followed}
        return self._reached or met != modules or _has_embedded(outputs)

    def _marking(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def look_up(*args: Any, **kwargs: Any) -> Any:
            self._followed.add(path)
            return forward(*args, **kwargs).as_subclass(_Embedded)

        return look_up

    def _layer(self, index: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            named = dict(kwargs)
            hidden = args[0] if args else named.pop("hidden_states")
            self._reached |= _has_embedded((args[1:], named)) or (index > 0 and _has_embedded(hidden))
            made = torch.empty(hidden.shape, dtype=hidden.dtype)
            return (made, *(None,) * (self._num_returned - 1)) if self._num_returned else made

        return run

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        self._reached |= _has_embedded(hidden)
        return torch.empty(*hidden.shape[:-1], self._vocab_size, dtype=hidden.dtype)


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Put everything on torch's meta device, and whatever is hung into modules meanwhile out again."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        for module, _, buffers in before:
            module._buffers.update({name: buffer.to(_META) for name, buffer in buffers.items() if buffer is not None})
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def _has_embedded(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_embedded(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_embedded(item) for item in value)
    return isinstance(value, _Embedded)
