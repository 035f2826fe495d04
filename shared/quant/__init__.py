"""Weights in 4, 6 and 8 bits: how they are laid out, made, and multiplied with."""
