"""Run language models that are too big for any machine you own, on the small machines you have.

>>> from layermesh import LayerMesh
>>> with LayerMesh("path-or-id", host_memory="2GB") as mesh:
...     print(mesh.generate("Why is the sky blue?").text)
"""

from typing import TYPE_CHECKING, Any

from layermesh.shared.native_libraries import settle_native_libraries

if TYPE_CHECKING:
    from layermesh.coordinator.answer import Answer, Token
    from layermesh.many import Finished
    from layermesh.mesh import LayerMesh

settle_native_libraries()  # here, because it must come before torch

__all__ = ["Answer", "Finished", "LayerMesh", "Token", "__version__"]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "layermesh.coordinator.answer",
    "Finished": "layermesh.many",
    "LayerMesh": "layermesh.mesh",
    "Token": "layermesh.coordinator.answer",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, which `layermesh --help` and a look at the version need not wait for.
    if name not in _HOMES:
        raise AttributeError(f"module 'layermesh' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
