"""What becomes of answers when workers do not stay: decisions, and the line that carries them out."""
