"""GGUF tensors that transformers' tensor processors turn into parameters, one architecture at a time."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from layermesh.shared.checkpoints.gguf_gemma4 import NAMES
from layermesh.shared.checkpoints.gguf_groups import GGUFGroup
from layermesh.shared.checkpoints.rows import Combine
from layermesh.shared.checkpoints.tensors import Checkpoint, StoredTensor
from layermesh.shared.errors import UnsupportedModelError

_LLAMA_SHAPED: Final = frozenset({"mistral", "mixtral"})  # the architecture `llama` to llama.cpp
_EXPERTS: Final = "_exps.weight"
_SHARED_GATE: Final = ".ffn_gate_inp_shexp.weight"


def processed_groups(checkpoint: Checkpoint, model: Any) -> list[GGUFGroup]:
    """Return the groups of `checkpoint` for the parameters of `model`, as `load_gguf_checkpoint` would make them.

    Raises UnsupportedModelError where the `gguf` package has no tensor names for the model.
    """
    processor = _processor(str(checkpoint.gguf_architecture), model.config)
    names = _names(checkpoint, model, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sources: dict[str, list[StoredTensor]] = {}
    for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.offset):
        key = tensor.name if tensor.name in names else tensor.name.removesuffix(".weight")
        if key in names and names[key] in shapes and (key == tensor.name or tensor.name.endswith(_EXPERTS)):
            sources.setdefault(names[key], []).append(tensor)
    return [
        GGUFGroup(
            targets=(target,),
            sources=tuple(tensor.name for tensor in tensors),
            shapes=(shapes[target],),
            source_shapes=tuple(tensor.shape for tensor in tensors),
            plain=len(tensors) == 1 and _is_identity(processor, names, tensors[0]),
            convert=_combiner(processor, names, [tensor.name for tensor in tensors]),
        )
        for target, tensors in sources.items()
    ]


def _processor(architecture: str, config: Any) -> Any:
    from layermesh.shared.transformers_api import TENSOR_PROCESSORS, Gemma2TensorProcessor, TensorProcessor

    values = config.to_dict()
    if config.model_type == "mixtral":
        return _mixtral_processor(values)
    if architecture == "gemma":  # stores its norms plus one, as its successors do
        return Gemma2TensorProcessor(config=values)
    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=values)


def _mixtral_processor(config: dict[str, Any]) -> Any:
    from layermesh.shared.transformers_api import LlamaTensorProcessor, Qwen2MoeTensorProcessor

    attention = LlamaTensorProcessor(config=config)

    class MixtralTensorProcessor(Qwen2MoeTensorProcessor):  # type: ignore[misc]
        """Llama's attention and Qwen's fused experts."""

        def process(self, weights: Any, name: str, **kwargs: Any) -> Any:
            return super().process(attention.process(weights, name).weights, name, **kwargs)

    return MixtralTensorProcessor(config=config)


def _names(checkpoint: Checkpoint, model: Any, processor: Any) -> dict[str, str]:
    from layermesh.shared.transformers_api import get_gguf_hf_weights_map

    model_type = "llama" if model.config.model_type in _LLAMA_SHAPED else None
    try:
        names = dict(get_gguf_hf_weights_map(_NamesOf(model), processor, model_type=model_type))
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{checkpoint.path} is a {model.config.model_type} model, and the installed gguf package does not know its "
            "tensor names. Look for this model in safetensors."
        ) from error
    if checkpoint.gguf_architecture == "gemma4":
        layers = range(model.config.num_hidden_layers)
        names |= {f"blk.{layer}.{name}": f"model.layers.{layer}.{part}" for layer in layers for name, part in NAMES.items()}
    return names


class _NamesOf:
    """A module and its children as far as their parameters' names, all that transformers asks of a model here.

    It would ask every module down to the last and build gguf's table anew for each: ten seconds for 30 layers.
    """

    def __init__(self, module: Any, depth: int = 1) -> None:
        self.config = getattr(module, "config", None)
        self._names = dict.fromkeys(module.state_dict())
        self._children = [(name, _NamesOf(child, depth - 1)) for name, child in module.named_children() if depth > 0]

    def state_dict(self) -> dict[str, None]:
        return self._names

    def named_children(self) -> list[tuple[str, "_NamesOf"]]:
        return self._children


def _combiner(processor: Any, names: dict[str, str], sources: list[str]) -> Combine:
    def combine(decoded: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        made: dict[str, Any] = {"tensors": {}}
        with np.errstate(all="ignore"):
            for name, tensor in zip(sources, decoded, strict=True):
                _process(processor, names, name, tensor.numpy(), made)
        return dict(made["tensors"])

    return combine


def _process(processor: Any, names: dict[str, str], name: str, weights: Any, made: dict[str, Any]) -> None:
    if name.endswith(_SHARED_GATE):  # one row, as converters write it; transformers adds that dimension itself
        weights = weights.reshape(-1)
    result = processor.process(weights=weights, name=name, tensor_key_mapping=names, parsed_parameters=made)
    if result.name in names:
        made["tensors"][names[result.name]] = torch.from_numpy(np.ascontiguousarray(result.weights))


def _is_identity(processor: Any, names: dict[str, str], tensor: StoredTensor) -> bool:
    """Find out by showing the processor an array that takes no memory, or a tiny one where it would copy experts."""
    is_expert = tensor.name.endswith(_EXPERTS)
    weights = np.broadcast_to(np.float32(-1), (1, 1, 1) if is_expert else tensor.shape)
    made: dict[str, Any] = {"tensors": {}}
    result = processor.process(weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters=made)
    if is_expert and result.name is None:
        return [tuple(made_of.shape) for made_of in made["tensors"].values()] == [weights.shape]
    return result.weights is weights and result.name == tensor.name
