"""Words that coordinator and workers both speak: checkpoints, blocks, spans, frames, errors and units."""
