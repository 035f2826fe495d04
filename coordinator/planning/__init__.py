"""Which machine runs which layers: pure functions of what machines are, what a model asks, and how far apart they are."""
