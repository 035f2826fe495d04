"""Stored tensors that belong into a layer of the model and that the model has no use for, such as biases that it has not."""

import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from layermesh.shared.model.quant_parts import is_harmless
from layermesh.shared.model.recipes import NameMap, Recipe, sources_of
from layermesh.shared.transformers_api import ignored_when_unexpected

_COMPUTED: Final = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"attn\.(masked_)?bias$", r"attention\.(masked_)?bias$")
_MAX_NAMED: Final = 3


def find_unused(tensors: Collection[str], recipes: Iterable[Recipe], model: Any, layers_path: str) -> tuple[str, ...]:
    """Return the names of `tensors` for modules of decoder layers that fill no parameter.

    Left out are layers that the model has not (of multi-token prediction, say), whatever lies outside the layers, scales of
    inputs and caches, and what transformers passes over without a warning.
    """
    used = {source.name for recipe in recipes for source in sources_of(recipe)}
    left = [name for name in tensors if name not in used and not is_harmless(name)]
    if not left:
        return ()
    names = NameMap(model)
    modules = {name for name, _ in model.named_modules() if name.startswith(f"{layers_path}.")}
    expected = re.compile("|".join((*_COMPUTED, *ignored_when_unexpected(model))))
    return tuple(
        name
        for name in left
        if not expected.search(name) and names.target(name) is None and modules & _around(names.find(name)[0])
    )


def describe_unused(unused: Collection[str]) -> str:
    """Return a sentence that names the first of `unused`."""
    some = ", ".join(list(unused)[:_MAX_NAMED]) + (f" and {len(unused) - _MAX_NAMED} more" if len(unused) > _MAX_NAMED else "")
    return f"the files store tensors that this architecture does not have; they are not used: {some}."


def _around(name: str) -> set[str]:
    module = name.rpartition(".")[0]
    return {module, module.rpartition(".")[0]}
