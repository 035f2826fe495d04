"""What a stage is known by on every machine."""

from dataclasses import dataclass

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import MeshError
from layermesh.shared.spans import LayerSpan

MAX_LAYERS = 100_000
DTYPES = frozenset({"float32", "bfloat16", "float16"})


@dataclass(frozen=True, slots=True)
class StageKey:
    """`span` of the model with that fingerprint, computed in `dtype`; equal keys can share a stage.

    `has_head` says that it ends with logits.
    """

    fingerprint: str
    span: LayerSpan
    dtype: str
    fast_path: bool
    has_head: bool = False

    def to_proto(self) -> pb.SpanKey:
        """Return it as it travels."""
        return pb.SpanKey(
            fingerprint=self.fingerprint,
            start=self.span.start,
            end=self.span.end,
            dtype=self.dtype,
            fast_path=self.fast_path,
            has_head=self.has_head,
        )

    @classmethod
    def parse(cls, key: pb.SpanKey) -> "StageKey":
        """Read what another machine sent; raises MeshError for what makes no sense."""
        if len(key.fingerprint) != 64 or not set(key.fingerprint) <= set("0123456789abcdef"):
            raise MeshError(f"{key.fingerprint[:80]!r} is no model's fingerprint.")
        if not key.start < key.end <= MAX_LAYERS or key.dtype not in DTYPES:
            raise MeshError(f"layers [{key.start}, {key.end}) in {key.dtype[:20]!r} make no stage.")
        return cls(key.fingerprint, LayerSpan(key.start, key.end), key.dtype, key.fast_path, key.has_head)
