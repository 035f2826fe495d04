"""transformers without what compiles and distributes models, which layermesh does itself or not at all.

Its modules import torch's compiler, DTensor and, below both, sympy, at their top: 70 MB of memory that weights could have, and
two seconds. torch says that it was built without its distributed part, as some are. While modules of transformers are loaded,
light ones stand in for the compiler's: whatever asks those for something that they do not have gets it from the real module,
and everyone else gets the real ones anyway.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any, Final

_PREFIX: Final = "transformers."
_COMPILER: Final = "torch._dynamo"
_TRACING: Final = "torch._dynamo._trace_wrapped_higher_order_op"
_FLEX: Final = "torch.nn.attention.flex_attention"


def lighten_imports() -> None:
    """Let what is imported of transformers from now on be light; for a process that is layermesh's own."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def load_compiler() -> None:
    """Load the real compiler now, for models whose caches mark their tensors for it when they are first used.

    Later it would be beyond their budget: what is loaded before a budget is counted is not part of it.
    """
    importlib.import_module(_COMPILER)


class _Finder:
    """Finds the modules of transformers as Python does, and has them loaded among stand-ins."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if any(name.startswith(f"{known}.") and isinstance(sys.modules.get(known), _StandIn) for known in _NAMES):
            return ModuleSpec(name, _Loaded(_real(name)))  # a module inside one that is stood in for
        if not name.startswith(_PREFIX):
            return None
        others = (finder for finder in tuple(sys.meta_path) if not isinstance(finder, _Finder))
        found = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((each for each in found if each is not None), None)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module, and all those that it imports, among stand-ins."""

    def exec_module(self, module: ModuleType) -> None:
        from torch import distributed

        distributed.is_available = _is_not  # for good: transformers asks again when its modules have been loaded
        with _stand_ins():
            super().exec_module(module)


class _Loaded(Loader):
    """Gives a module that has been loaded already, as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - the import system calls it so
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _StandIn(ModuleType):
    """Has a few names of the module that it stands in for, and the others from there."""

    def __init__(self, name: str, names: Mapping[str, Any]) -> None:
        super().__init__(name, "A light stand-in for the module of this name.")
        vars(self).update(names, __path__=[])  # a module inside may be asked for, and be found among the stand-ins

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    """Load the module itself."""
    hidden = {stand_in: sys.modules.pop(stand_in) for stand_in in _NAMES if isinstance(sys.modules.get(stand_in), _StandIn)}
    try:
        return importlib.import_module(name)
    finally:
        for stand_in, module in hidden.items():
            sys.modules.setdefault(stand_in, module)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put stand-ins into the places of modules that are not loaded yet, unless they are there already."""
    with ExitStack() as undo:
        for name, names in _NAMES.items():
            if name not in sys.modules:
                sys.modules[name] = _StandIn(name, names)
                undo.callback(_remove, name)
        yield


def _remove(name: str) -> None:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]


def _is_not() -> bool:
    return False


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """Decorate nothing: what is marked for the compiler, or hidden from it, never meets it."""
    return _unchanged if function is None else function


class _BlockMask:
    """The masks of flex attention, of which there are none."""


class _LazyMode:
    """A context of the class of that name in torch, which is loaded when the first one is entered."""

    def __init__(self) -> None:
        self._mode: Any = _real(_TRACING).TransformGetItemToIndex()

    def __enter__(self) -> Any:
        return self._mode.__enter__()

    def __exit__(self, *error: object) -> Any:
        return self._mode.__exit__(*error)


def _call_real(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(_real(module), name)(*args, **kwargs)


_NAMES: Final[Mapping[str, Mapping[str, Any]]] = {
    _COMPILER: {"disable": _unchanged, "assume_constant_result": _unchanged, "allow_in_graph": _unchanged},
    _TRACING: {"TransformGetItemToIndex": _LazyMode},
    _FLEX: {
        "BlockMask": _BlockMask,
        "_DEFAULT_SPARSE_BLOCK_SIZE": 128,
        "create_block_mask": partial(_call_real, _FLEX, "create_block_mask"),
        "flex_attention": partial(_call_real, _FLEX, "flex_attention"),
    },
}
