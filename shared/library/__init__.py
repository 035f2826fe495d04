"""The models a user has, and how to get more: own files, the catalog, the Hugging Face hub."""

from layermesh.shared.library.catalog import CATALOG, DEFAULT_MODEL, CatalogEntry
from layermesh.shared.library.home import home
from layermesh.shared.library.installed import InstalledModel, list_models, remove
from layermesh.shared.library.progress import Progress
from layermesh.shared.library.resolution import ResolvedModel, resolve

__all__ = [
    "CATALOG", "DEFAULT_MODEL", "CatalogEntry", "InstalledModel", "Progress", "ResolvedModel", "home", "list_models",
    "remove", "resolve",
]  # fmt: skip
