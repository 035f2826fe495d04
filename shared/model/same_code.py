"""Telling whether two classes of transformers do the same, by their code: most families share it word for word."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def code_of(function: Callable[..., Any]) -> str:
    """Return what `function` does, without its decorators, annotations and docstring, to be compared."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    return ast.dump(_Bare().visit(definition))


def same_code(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tell whether two functions do the same, apart from their own names; False where the source of one is not there."""
    try:
        return code_of(one) == code_of(other)
    except (OSError, TypeError, SyntaxError):
        return False


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list, node.returns, node.name = [], None, ""
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node
