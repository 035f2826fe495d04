"""Which files of a hub repository a model consists of; decided from their names alone."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from layermesh.shared.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from layermesh.shared.gguf_pieces import piece_names
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


def pick_gguf(repo_id: str, names: Iterable[str], wanted: str) -> tuple[str, ...]:
    """Return the files, in order, of the one GGUF model that `wanted` names as `find_gguf` has it, all of them among `names`.

    Raises what `find_gguf` does, and CheckpointError for a model some of whose files are not there.
    """
    there = set(names)
    files = find_gguf(repo_id, there, wanted)
    missing = [name for name in files if name not in there]
    if missing:
        raise CheckpointError(
            f"{repo_id} lacks {len(missing)} of the {len(files)} files of {files[0]}, {missing[0]} first. Tell its owner, or "
            "take another of its files."
        )
    return files


def find_gguf(repo_id: str, names: Iterable[str], wanted: str) -> tuple[str, ...]:
    """Return the files of the one GGUF model that `wanted` names, as many as it has in all; some may not be among `names`.

    It names one by the path or name of any of its files, or by what one model has in its name or as its folder ("Q4_K_M", in
    capitals or not). Raises ModelNotFoundError when none or several fit, CheckpointError for a name that leads elsewhere.
    """
    offered = _gguf_models(names)
    fits: list[tuple[str, ...]] = []
    for is_meant in _ways_to_mean(wanted):
        fits = [files for files in offered if is_meant(files)]
        if len(fits) == 1:
            for name in fits[0]:
                check_file_name(name, repo_id)
            return fits[0]
        if fits:
            break
    some = ", ".join(map(_shown, fits or offered))
    what = f"{len(fits)} of its models fit: {some}" if fits else f"it has {some}" if offered else "it has no GGUF file"
    raise ModelNotFoundError(f"{repo_id} has no single file {wanted!r}: {what}. Write {repo_id}:FILE.")


def _ways_to_mean(wanted: str) -> Iterator[Callable[[tuple[str, ...]], bool]]:
    """Give the tests for the files of a model whether `wanted` means it, the surest first."""
    yield lambda files: wanted in files
    yield lambda files: wanted in {PurePosixPath(name).name for name in files}
    for before in ("[.-]", "[._-]"):
        tagged = re.compile(rf"(?:^|{before}){re.escape(wanted)}[.-]", re.IGNORECASE)
        yield lambda files, tagged=tagged: tagged.search(PurePosixPath(files[0]).name) is not None  # type: ignore[misc]
    yield lambda files: wanted.lower() in PurePosixPath(files[0].lower()).parts[:-1]


def _gguf_models(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the files of each language model among `names`, sorted (`mmproj` files hold the eyes of another model)."""
    files = (name for name in names if name.lower().endswith(".gguf"))
    models = {piece_names(name) for name in files if not PurePosixPath(name).name.lower().startswith("mmproj")}
    return sorted(models)


def _shown(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} ({len(files)} files)"


def _no_model(repo_id: str, names: Sequence[str]) -> UnsupportedModelError:
    """Return the error for a repository without config and safetensors weights, by what it has instead."""
    if gguf := _gguf_models(names):
        choices = ", ".join(f"{repo_id}:{_shown(files)}" for files in gguf)
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
