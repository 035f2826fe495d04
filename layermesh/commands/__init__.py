"""The commands: what each takes, and what is refused before anything heavy is imported."""
