"""How much memory a model's caches and activations take, estimated from its configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layermesh.shared.model.blocks import LARGE_BYTES, NUM_READERS, PAGE_BYTES, Block, BlockTable
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.processor import multiplies_bfloat16
from layermesh.shared.quant.linear import QuantLinear
from layermesh.shared.quant.multiplying import unpacking_bytes
from layermesh.shared.quant.plain import WIDENED_BYTES
from layermesh.shared.spans import LayerSpan

DECODING_BYTES = 8 << 20  # what the readers use to decode pieces of blocks that are not stored as they are computed with
EXPERT_KERNEL_BYTES = 32 << 20  # compiled kernels for experts' many shapes, on top of that, where oneDNN computes
WORKSPACE_BYTES = 10 << 20  # kernels' own workspaces and code, and what the allocator cannot give back
HOST_LAYER_BYTES = 16 << 20  # what layers take that are computed on the host beside a card, apart from their caches
CUDA_WORKSPACE_BYTES = 17 << 20  # cuBLAS's and cuBLASLt's, as `settle_native_libraries` leaves them
CUDA_SPARE_BYTES = 44 << 20  # of the segments of 2 and 20 MiB from which torch's allocator serves small tensors
CUDA_SEGMENT_BYTES = 2 << 20  # what it rounds large ones up to
CUDA_LARGE_BYTES = 10 << 20  # from where on they have a segment of their own
PLANNED_TOKENS = 1024  # the length of sequence that a plan makes room for when nobody says which
LEAST_PLANNED_TOKENS = 128  # what that may shrink to where memory is short
PLANNED_CHUNK = 512  # of which as many come in one call
LOGITS_PARTY = 3  # sequences for whose logits there is room in any case, twice
ACCUMULATION_BYTES = 4  # logits and attention scores are kept in float32


@dataclass(frozen=True, slots=True)
class SequenceSize:
    """How long a sequence may become, and how many of its tokens come in one call at most."""

    num_tokens: int
    num_new: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_new <= self.num_tokens:
            raise ValueError(f"a sequence of {self.num_tokens} tokens cannot take {self.num_new} at once")


def planned_sizes(context_length: int | None) -> list[SequenceSize]:
    """Return the sequences that a plan tries to make room for, down from the usual length."""
    lengths = [min(PLANNED_TOKENS, context_length or PLANNED_TOKENS)]
    while lengths[-1] // 2 >= LEAST_PLANNED_TOKENS:
        lengths.append(lengths[-1] // 2)
    return [SequenceSize(length, min(PLANNED_CHUNK, length)) for length in lengths]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of one stage beside the blocks it streams."""

    rest_bytes: int
    scratch_bytes: int
    decoding_bytes: int
    kernel_bytes: int
    cache_bytes_per_token: int
    state_bytes: int
    hidden_bytes_per_token: int
    activation_bytes_per_token: int
    score_bytes: int
    logits_bytes: int
    logits_bytes_per_token: int
    device_bytes: int = 0
    repeated_bytes_per_token: int = 0
    reads_apart: bool = False  # on a host beside the device

    @classmethod
    def of(cls, definition: ModelDefinition, span: LayerSpan, table: BlockTable, device_type: str = "cpu") -> "Footprint":
        """Estimate for the layers of `span` on a device of that type."""
        config = definition.model.config.get_text_config(decoder=True)
        itemsize = definition.model.dtype.itemsize
        hidden = int(getattr(config, "hidden_size", 0) or 0)
        per_layer = _cache_elements(config) * itemsize
        blocks = (*table.stream, table.rest)
        widens = device_type == "cpu" and definition.model.dtype is torch.bfloat16 and not multiplies_bfloat16()
        on_cuda = device_type == "cuda"
        return cls(
            rest_bytes=table.rest.loaded_bytes,
            scratch_bytes=max(block.scratch_bytes for block in blocks),
            decoding_bytes=_reading_bytes(blocks),
            kernel_bytes=_unpacking_bytes(definition)
            + (2 * WIDENED_BYTES if widens else 0)
            + (EXPERT_KERNEL_BYTES if itemsize < ACCUMULATION_BYTES and _has_experts(table) else 0),
            cache_bytes_per_token=per_layer * (len(span) + 1),  # growing copies one layer at a time
            state_bytes=_state_elements(config) * 4 * len(span),
            hidden_bytes_per_token=2 * hidden * itemsize,
            activation_bytes_per_token=(12 * hidden + 4 * _widest(config)) * itemsize
            + (_widest(config) * ACCUMULATION_BYTES if widens else 0)
            + 4 * 4 * _scan_elements(config),
            score_bytes=_score_elements(definition.model) * ACCUMULATION_BYTES,
            logits_bytes=2 * LOGITS_PARTY * definition.vocab_size * ACCUMULATION_BYTES,
            logits_bytes_per_token=0 if definition.keeps_last_logits else 2 * definition.vocab_size * ACCUMULATION_BYTES,
            device_bytes=_cuda_bytes(table, span) if on_cuda else 0,
            repeated_bytes_per_token=_repeated_elements(config) * itemsize if on_cuda else 0,
            reads_apart=on_cuda,
        )

    def working_bytes(self, *sequences: SequenceSize) -> int:
        """Bytes beside the stream for `sequences` that are aboard at once.

        Inside a layer there is one at a time, or one token of each, which meet there; so it is at the head.
        """
        caches = sum(self.cache_bytes_per_token * size.num_tokens + self.state_bytes for size in sequences)
        passing = sum(self.hidden_bytes_per_token * size.num_new for size in sequences)
        meeting = len(sequences) * self.activation_bytes_per_token
        inside = max([meeting, *(self._layer_bytes(size) for size in sequences)])
        logits_bytes = self.logits_bytes * max(1, len(sequences) / LOGITS_PARTY)
        fixed = self.rest_bytes + self.kernel_bytes + WORKSPACE_BYTES + (0 if self.reads_apart else self.reading_bytes)
        return fixed + self.device_bytes + caches + passing + inside + int(logits_bytes)

    @property
    def reading_bytes(self) -> int:
        """Bytes that it takes to make blocks of what is read."""
        return self.scratch_bytes + self.decoding_bytes

    def host_working_bytes(self, *sequences: SequenceSize) -> int:
        """Bytes on the host that it takes to compute some layers there, beside a device with memory of its own."""
        return sum(self.cache_bytes_per_token * size.num_tokens for size in sequences) + HOST_LAYER_BYTES

    def _layer_bytes(self, size: SequenceSize) -> int:
        scores = self.score_bytes * size.num_tokens
        inside = (self.activation_bytes_per_token + self.logits_bytes_per_token + scores) * size.num_new
        return inside + self.repeated_bytes_per_token * size.num_tokens


def _cuda_bytes(table: BlockTable, span: LayerSpan) -> int:
    """What a card gives beyond what is asked of it: workspaces of its libraries, and the allocator's rounding."""
    blocks = (*table.layers[span.start : span.end], table.head, table.rest)
    return CUDA_WORKSPACE_BYTES + CUDA_SPARE_BYTES + sum(_rounding_bytes(block.loaded_bytes) for block in blocks)


def _rounding_bytes(num_bytes: int) -> int:
    """The most that torch's allocator leaves unused of the segment in which `num_bytes` lie."""
    return CUDA_SEGMENT_BYTES if num_bytes >= CUDA_LARGE_BYTES else num_bytes


def _reading_bytes(blocks: Sequence[Block]) -> int:
    """What the readers take of their own: to decode in, and for what cannot be read in place."""
    decoding = DECODING_BYTES if any(block.needs_decoding for block in blocks) else 0
    misplaced = [block.read_bytes for block in blocks if block.is_misplaced and block.stored_bytes >= LARGE_BYTES]
    bounced = max(misplaced) + PAGE_BYTES if misplaced else 0
    return decoding + NUM_READERS * bounced


def _has_experts(table: BlockTable) -> bool:
    shapes = {tensor.shape for block in table.layers for tensor in block.tensors}
    return any(len(shape) == 3 and min(shape[1:]) > 16 for shape in shapes)  # [experts, out, in], and no convolution


def _unpacking_bytes(definition: ModelDefinition) -> int:
    """What products of many rows with packed weights take."""
    packed = [module for module in definition.model.modules() if isinstance(module, QuantLinear)]
    return max(
        (unpacking_bytes(module.out_features, module.in_features, module.form, module.tile) for module in packed), default=0
    )


def _cache_elements(config: Any) -> int:
    """Elements of key and value that one layer keeps of one token."""
    heads = _first(config, "num_attention_heads", "n_head", "decoder_attention_heads", default=1)
    key_heads = _first(config, "num_key_value_heads", "num_kv_heads", "multi_query_group_num", default=heads)
    head_dim = _first(config, "head_dim", "kv_channels", default=max(_first(config, "hidden_size", default=heads) // heads, 1))
    if (rope := _first(config, "qk_rope_head_dim", default=0)) and (value := _first(config, "v_head_dim", default=0)):
        return heads * (_first(config, "qk_nope_head_dim", default=head_dim) + rope + value)
    return 2 * key_heads * head_dim


def _repeated_elements(config: Any) -> int:
    """Elements of key and value per token that a layer repeats for all heads, where its kernel does not share them."""
    heads = _first(config, "num_attention_heads", "n_head", "decoder_attention_heads", default=1)
    head_dim = _first(config, "head_dim", "kv_channels", default=max(_first(config, "hidden_size", default=heads) // heads, 1))
    return 2 * heads * head_dim


def _state_elements(config: Any) -> int:
    """Elements of state that a layer of a recurrent or hybrid model keeps of a sequence."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not (kinds - {"full_attention", "sliding_attention", "chunked_attention"}) and not hasattr(config, "state_size"):
        return 0
    return _first(config, "hidden_size", default=0) * 256


def _scan_elements(config: Any) -> int:
    """Elements per token of each of the float32 tensors that a state-space layer scans a prompt with."""
    state = _first(config, "state_size", "mamba_d_state", "ssm_state_size", default=0)
    hidden = _first(config, "hidden_size", default=0)
    inner = _first(config, "mamba_intermediate", default=_first(config, "expand", "mamba_expand", default=2) * hidden)
    return state * inner


def _score_elements(model: Any) -> int:
    """Attention scores per pair of tokens that are in memory at once; none where the kernel never writes them down."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "_attn_implementation", None) == "sdpa":
        return 1
    return 2 * _first(config, "num_attention_heads", "n_head", "decoder_attention_heads", default=1)


def _widest(config: Any) -> int:
    """The widest row of activations inside a layer."""
    names = ("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "d_ff", "d_inner", "ffn_hidden_size")
    return max(_first(config, name, default=0) for name in names) or 4 * _first(config, "hidden_size", default=0)


def _first(config: Any, *names: str, default: int) -> int:
    """The largest value, over the layers, of the first of `names` that the configuration has."""
    for name in names:
        values = [value for value in _values(config, name) if isinstance(value, int) and not isinstance(value, bool)]
        if values and max(values) > 0:
            return max(values)
    return default


def _values(config: Any, name: str) -> list[Any]:
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers' way to say that it differs from layer to layer
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return list(value) if isinstance(value, list | tuple) else [value]
