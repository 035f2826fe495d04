"""Numbers on which machines of a mesh agree."""

from typing import Final

from layermesh import __version__
from layermesh.shared.errors import MeshError

PROTOCOL_VERSION: Final = 1
PART_BYTES: Final = 1 << 20  # in one message; four times that are slower, and the receive limit is 4 MiB
MANIFEST: Final = "manifest"  # what a model's description is asked for as


def check_version(version: int) -> None:
    """Raise MeshError for a version of the protocol that this is not: what it means by a message need not be what we do."""
    if version != PROTOCOL_VERSION:
        raise MeshError(
            f"it speaks version {PROTOCOL_VERSION} of the protocol (layermesh {__version__}), and was spoken to in {version}. "
            "Install the same layermesh on both."
        )
