"""Numbers on which machines of a mesh agree."""

from typing import Final

PROTOCOL_VERSION: Final = 1
PART_BYTES: Final = 1 << 20  # in one message; four times that are slower, and the receive limit is 4 MiB
MANIFEST: Final = "manifest"  # what a model's description is asked for as
