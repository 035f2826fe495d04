"""The head of a GGUF model in several files as one file without weights, for readers of one file."""

import struct
from pathlib import Path
from typing import Final

from layermesh.shared.checkpoints.gguf_header import GGUF_MAGIC, GGUFHeader

_FLOAT32_VECTOR_OF_ONE: Final = struct.pack("<IQIQ", 1, 1, 0, 0)  # dimensions, size, kind, offset
_PADDING_BYTES: Final = 2**20 + 4  # any alignment that read_gguf_header allows, and one float


def write_joined_head(header: GGUFHeader, target: Path) -> None:
    """Write to `target` the metadata and the tensor names of `header`, each tensor a single zero; raises OSError."""
    spans = [span for key, span in header.spans.items() if not key.startswith("split.")]
    with header.path.open("rb") as source, target.open("wb") as out:
        out.write(GGUF_MAGIC + struct.pack("<IQQ", 3, len(header.tensors), len(spans)))
        for start, end in spans:
            source.seek(start)
            out.write(source.read(end - start))
        for name in header.tensors:
            encoded = name.encode("utf-8")
            out.write(struct.pack("<Q", len(encoded)) + encoded + _FLOAT32_VECTOR_OF_ONE)
        out.truncate(out.tell() + _PADDING_BYTES)
