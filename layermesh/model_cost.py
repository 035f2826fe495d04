"""What an opened model asks of machines, for the planner."""

from layermesh.coordinator.planning.model_cost import LayerCost, ModelCost
from layermesh.local import LocalModel
from layermesh.shared.footprint import Footprint, planned_sizes
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.pieces import split_layer
from layermesh.shared.spans import LayerSpan

LOGIT_BYTES = 4


def model_cost(local: LocalModel) -> ModelCost:
    """Return the sizes of `local`, block by block, with caches for a sequence of usual length."""
    definition, table = local.definition, local.table
    size = planned_sizes(local.context_length)[0]
    one = Footprint.of(definition, LayerSpan(0, 1), table, local.device.type)
    working = one.working_bytes(size)
    per_layer = one.cache_bytes_per_token * size.num_tokens // 2 + one.state_bytes  # which is for one more layer than there are
    hidden = int(getattr(definition.model.config.get_text_config(decoder=True), "hidden_size", 0) or 0)
    return ModelCost(
        layers=tuple(_cost(block, per_layer) for block in table.layers),
        head=LayerCost(sum(block.loaded_bytes for block in table.heads), sum(block.stored_bytes for block in table.heads)),
        form=definition.weight_form,
        base_bytes=working - per_layer,
        hidden_bytes=hidden * local.dtype.itemsize,
        logits_bytes=definition.vocab_size * LOGIT_BYTES,
    )


def _cost(block: Block, working_bytes: int) -> LayerCost:
    pieces = [piece.loaded_bytes for piece in split_layer(block) if not piece.is_core]
    largest = max(pieces) if len(pieces) > 1 else None
    return LayerCost(block.loaded_bytes, block.stored_bytes, working_bytes, largest)
