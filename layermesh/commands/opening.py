"""Options about the model and the machines, and opening it with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from layermesh.interrupts import check_interrupt, ending
from layermesh.settings import OpeningOptions, check_opening
from layermesh.terminal import DownloadLine, harmless, note

if TYPE_CHECKING:
    from layermesh.mesh import LayerMesh


def opening_options(
    device: str | None,
    device_memory: str | None,
    host_memory: str | None,
    dtype: str | None,
    no_fast_path: bool,
    quantize: str | None,
    group_size: int | None,
    context: int | None,
    revision: str | None,
    offline: bool,
) -> OpeningOptions:
    """Return what was said about the model and this machine."""
    return OpeningOptions(
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        dtype=dtype,
        fast_path=not no_fast_path,
        quantize=quantize,
        group_size=group_size,
        context=context,
        revision=revision,
        offline=offline,
    )


def mesh_options(workers: Sequence[str] | None, *, no_discovery: bool, spread: bool, alone: bool) -> OpeningOptions:
    """Return what was said about other machines."""
    return OpeningOptions(workers=list(workers or ()), discover=not no_discovery, spread=spread, alone=alone)


def tell(text: str) -> None:
    """Show the user a line in which others may have had a say."""
    note(harmless(text))


def _say_nothing(_: str) -> None:
    """Stand in for `tell` where only the answer and errors are wanted."""


@contextmanager
def open_mesh(model: str | None, options: OpeningOptions, *, quiet: bool = False) -> Iterator["LayerMesh"]:
    """Open the model, after a look at what can be known to be wrong before anything heavy is imported."""
    from layermesh.shared.library import DEFAULT_MODEL, resolve
    from layermesh.shared.library.names import looks_like_path

    name = DEFAULT_MODEL if model is None else model
    check_opening(options)
    if looks_like_path(name):
        resolve(name, revision=options.get("revision"))
    with ending(at_once=True):  # C extensions swallow a KeyboardInterrupt
        from layermesh.mesh import LayerMesh

    options["tell"] = _say_nothing if quiet else tell
    if not quiet:
        options["progress"] = DownloadLine()
    with LayerMesh(name, **options) as mesh:
        check_interrupt()
        for notice in () if quiet else mesh.local.notices:
            note(f"note: {notice}")
        yield mesh
