"""Renders one chat template, in a process of its own that `chat.py` starts.

A template comes with the model and may be hostile. Jinja's sandbox keeps it from Python's internals; it does not keep
it from nesting loops, or from asking for a string of a terabyte. So this process may use little memory and time, and
it may write no files and start no processes.

It reads a request as JSON from stdin: {"template", "variables", "memory_bytes", "cpu_seconds", "max_chars"}. It writes
{"text", "reads"}, the names of variables that the template reads, or {"refused"} when the template itself rejected the
conversation, or {"broken"} when it cannot be rendered.
The environment is that of transformers' `apply_chat_template`, written again because importing transformers takes ten
times as long as everything here. Nothing else of layermesh is imported.
"""

import contextlib
import json
import resource
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class Refusal(Exception):  # noqa: N818 - the template's own word, not a fault
    """What a template says through `raise_exception`."""


class Generation(Extension):
    """`{% generation %}` marks what a model is trained to say; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the marked part as a scope of its own."""
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class DictMaker:
    """`dict` as templates know it, without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return what `dict` returns."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return what `dict.fromkeys` returns."""
        return dict.fromkeys(*args)


class PublicNamespace(Namespace):
    """A `namespace()` in which nothing can be stored under a name with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` comes by position, so that namespace(self=...) works.
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute named {name!r}")


def _raise_exception(message: str) -> None:
    raise Refusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any]) -> tuple[str, list[str]]:
    """Return `template` rendered with `variables`, and the names of those that it reads. Raises whatever it raises."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": DictMaker(),
        "namespace": PublicNamespace,
    }
    text = environment.from_string(template).render(variables)
    return text, sorted(meta.find_undeclared_variables(environment.parse(template)) & variables.keys())


def limit_process(memory_bytes: int, cpu_seconds: int) -> None:
    """Bound what this process may use from now on; limits that the system does not know are left out."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def reply_to(request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request, whatever the template does short of ending this process."""
    try:
        text, reads = render(request["template"], request["variables"])
    except Refusal as refusal:
        return {"refused": str(refusal)}
    except MemoryError:
        return {"broken": f"it needs more than {request['memory_bytes'] / 1e6:.0f} MB of memory"}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"}
    if len(text) > request["max_chars"]:
        return {"broken": f"it makes {len(text)} characters, and {request['max_chars']} are plenty"}
    return {"text": text, "reads": reads}


def main() -> None:
    """Answer the one request on stdin."""
    request = json.load(sys.stdin)
    limit_process(request["memory_bytes"], request["cpu_seconds"])
    json.dump(reply_to(request), sys.stdout)


if __name__ == "__main__":
    main()
