"""`layermesh ls`: the models on this machine."""

from datetime import UTC, datetime

from layermesh.shared.library import CATALOG, list_models
from layermesh.shared.units import format_bytes
from layermesh.terminal import note, print_json


def print_models(*, as_json: bool) -> None:
    """Print the installed models, the last used first."""
    models = list_models()
    if as_json:
        rows = [
            {"name": model.name, "origin": model.origin, "path": str(model.path), "bytes": model.num_bytes} for model in models
        ]
        print_json(rows)
        return
    for model in models:
        used = datetime.fromtimestamp(model.used, UTC).astimezone()
        print(f"{model.name:<40} {format_bytes(model.num_bytes):>8}  {used:%Y-%m-%d}  {model.path}")  # noqa: T201
    if not models:
        note(f"no models yet. `layermesh pull {next(iter(CATALOG))}` fetches a small one.")
