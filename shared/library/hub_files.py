"""Which files of a hub repository a model consists of; decided from their names alone."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from layermesh.shared.library.names import check_file_name, check_no_escape

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_SETTINGS: Final = re.compile(
    r"config\.json|generation_config\.json|tokenizer[\w.-]*\.json|[\w.-]+\.(?:model|jinja|tiktoken)|vocab[\w.-]*\.(?:json|txt)"
    r"|merges[\w.-]*\.txt|special_tokens_map\.json|added_tokens\.json|chat_template[\w.-]*"
    r"|additional_chat_templates/[\w.-]+\.jinja",
    re.ASCII,
)
_NO_MODEL: Final = re.compile(r"consolidated|adapter_")  # Mistral's own copy of the same weights; a LoRA
_PICKLE: Final = re.compile(r"[^/]+\.(?:bin|pt|pth|ckpt|pkl)")
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository; `sha256` is known of large ones only."""

    name: str
    num_bytes: int
    sha256: str | None = None


def choose_files(repo_id: str, files: Sequence[HubFile], shards: frozenset[str]) -> tuple[HubFile, ...]:
    """Return the files that make a safetensors model, the weights last; `shards` are the names in its index, if any.

    Raises UnsupportedModelError for a repository without such a model, CheckpointError for names that lead elsewhere.
    """
    check_no_escape((file.name for file in files), repo_id)
    by_name = {file.name: file for file in files}
    weights = weight_names(by_name, shards)
    if not weights or CONFIG not in by_name:
        raise _no_model(repo_id, sorted(by_name))
    for name in weights:
        if check_file_name(name, repo_id) not in by_name:
            raise CheckpointError(f"{repo_id} lacks {name}, which its index names. Tell its owner.")
    settings = [file for file in files if _SETTINGS.fullmatch(file.name) or (shards and file.name == INDEX)]
    return (*settings, *(by_name[name] for name in weights))


def weight_names(names: Iterable[str], shards: frozenset[str]) -> list[str]:
    """Return which of `names` are the weights, as transformers chooses: one file, or else the shards of the index."""
    top = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if SINGLE in top:
        return [SINGLE]
    if shards:
        return sorted(shards)
    others = [name for name in top if not _NO_MODEL.match(name)]
    return others if len(others) == 1 else []


def parse_shards(index: bytes, whose: str) -> frozenset[str]:
    """Return the file names in a `model.safetensors.index.json`; raises CheckpointError if it is none."""
    try:
        shards = list(json.loads(index)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{whose}: its {INDEX} is broken ({error}). Tell its owner.") from error
    if not all(isinstance(shard, str) for shard in shards):
        raise CheckpointError(f"{whose}: its {INDEX} names files that are no names. Tell its owner.")
    return frozenset(check_file_name(shard, whose) for shard in shards)


def pick_gguf(repo_id: str, names: Iterable[str], wanted: str) -> str:
    """Return the GGUF file that `wanted` names: its path, its file name, or a part that one file has ("Q4_K_M").

    Raises ModelNotFoundError when none or several fit, UnsupportedModelError for one that is split into several files.
    """
    offered = _gguf_names(names)
    tagged = re.compile(rf"(?:^|[.-]){re.escape(wanted)}[.-]", re.IGNORECASE)
    for fits in (
        [name for name in offered if name == wanted],
        [name for name in offered if PurePosixPath(name).name == wanted],
        [name for name in offered if tagged.search(PurePosixPath(name).name)],
    ):
        if len(fits) == 1:
            return _whole(repo_id, check_file_name(fits[0], repo_id))
    some = f"it has {', '.join(offered)}" if offered else "it has no GGUF file"
    raise ModelNotFoundError(f"{repo_id} has no single file {wanted!r}: {some}. Write {repo_id}:FILE.")


def _whole(repo_id: str, name: str) -> str:
    if _SPLIT.search(name):
        raise UnsupportedModelError(
            f"{repo_id}:{name} is one part of several, and layermesh reads a GGUF from one file. "
            "Take a smaller quantisation in one file, or the original model as safetensors."
        )
    return name


def _gguf_names(names: Iterable[str]) -> list[str]:
    """Return the language models among `names`, sorted (`mmproj` files hold the eyes of another model)."""
    files = (name for name in names if name.lower().endswith(".gguf"))
    return sorted(name for name in files if not PurePosixPath(name).name.lower().startswith("mmproj"))


def _no_model(repo_id: str, names: Sequence[str]) -> UnsupportedModelError:
    """Return the error for a repository without config and safetensors weights, by what it has instead."""
    if gguf := _gguf_names(names):
        choices = ", ".join(f"{repo_id}:{name}" for name in gguf)
        return UnsupportedModelError(f"{repo_id} has only GGUF files. Say which one: {choices}.")
    if pickles := [name for name in names if _PICKLE.fullmatch(name)]:
        return UnsupportedModelError(
            f"{repo_id} has its weights only as pickle ({', '.join(pickles[:3])}), which can run any code when read. "
            "Take a repository with .safetensors files, or convert it with transformers' save_pretrained."
        )
    if any(name.startswith("adapter_") for name in names):
        return UnsupportedModelError(f"{repo_id} is an adapter, not a model. Merge it into its base model first.")
    return UnsupportedModelError(
        f"{repo_id} has no {CONFIG} with .safetensors weights beside it, so it is no language model that layermesh "
        "can read. Look at its page for the repository in transformers' format."
    )
