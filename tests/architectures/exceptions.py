"""Architectures that are not equal to plain transformers in some way of running them, and why."""

EXCEPTIONS: dict[str, dict[str, str]] = {}
