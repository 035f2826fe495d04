"""Code that a configuration names and that lies elsewhere: it is never fetched, and never run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from layermesh.shared.errors import UnsupportedModelError

OWN_ATTENTION: Final = (None, "eager", "sdpa")


def leave_out_foreign_code(config: Any, config_dir: Path) -> None:
    """Have `config` choose among torch's own kernels for attention, as nothing else is told what others would need.

    Raises UnsupportedModelError for a kernel of a hub ("owner/name"): where the `kernels` package is installed, transformers
    fetches and runs its code while it builds a model, without asking.
    """
    for each in _configs(config):
        chosen = getattr(each, "_attn_implementation", None)
        if isinstance(chosen, str) and "/" in chosen:
            raise UnsupportedModelError(
                f"{config_dir / 'config.json'} asks for the kernel {ascii(chosen)[:80]} of a hub, which is code of somebody "
                "else's and is never run. Take attn_implementation out of that file."
            )
        if chosen not in OWN_ATTENTION:
            each._attn_implementation = None


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        if (inner := getattr(config, name, None)) is not None:
            yield from _configs(inner)
