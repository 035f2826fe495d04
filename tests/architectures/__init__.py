"""Tiny random checkpoints of every causal-LM architecture that the installed transformers knows."""
