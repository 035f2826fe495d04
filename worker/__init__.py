"""A range of a model's layers on one device: the stage, its residency, and the stream of blocks past it."""
