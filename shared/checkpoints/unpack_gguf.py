"""The child process that turns the head of a GGUF file into what transformers reads from a folder.

Run as `python -m layermesh.shared.checkpoints.unpack_gguf GGUF FOLDER`. It is a process of its own because the
libraries it uses make objects of whole vocabularies and were not written for hostile files: its memory is bounded, its
time by the caller. Prints one JSON object: {}, {"error": CLASS, "message": TEXT} or {"errno": NUMBER, "message": TEXT}.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.checkpoints.gguf_split import read_gguf
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

MAX_MEMORY_BYTES: Final = 4 * 2**30
GGUF_NAME: Final = "model.gguf"


def main(gguf: Path, folder: Path) -> int:
    """Write config.json, generation_config.json and tokenizer files for `gguf` to `folder`; return the exit status."""
    _bound_memory()
    report: dict[str, Any] = {}
    try:
        unpack(read_gguf(gguf), folder)
    except (CheckpointError, UnsupportedModelError) as error:
        report = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        report = {"errno": error.errno or 0, "message": str(error)}
    print(json.dumps(report))  # noqa: T201
    return 1 if report else 0


def unpack(header: GGUFHeader, folder: Path) -> None:
    """Write what `header` says to `folder`; raises CheckpointError, UnsupportedModelError and OSError."""
    from layermesh.shared.checkpoints.gguf_config import make_config
    from layermesh.shared.checkpoints.gguf_generation import generation_settings
    from layermesh.shared.checkpoints.gguf_joined_head import write_joined_head

    # The tokenizer is read by a link alone in its folder, so that nothing beside the file is taken for part of the model.
    work = folder / "work"
    work.mkdir()
    link = work / GGUF_NAME
    if len(header.files) == 1:
        link.symlink_to(header.path.absolute())
    else:
        write_joined_head(header, link)
    config = make_config(header)
    config.save_pretrained(folder)
    tokenizer = _save_tokenizer(header, link, folder) if header.array_lengths.get("tokenizer.ggml.tokens") else None
    settings = generation_settings(header, config, partial(_token_id, tokenizer))
    if settings:
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    link.unlink()
    work.rmdir()


def _token_id(tokenizer: Any, text: str) -> int | None:
    found = None if tokenizer is None else tokenizer.get_vocab().get(text)
    return found if isinstance(found, int) else None


def _save_tokenizer(header: GGUFHeader, link: Path, folder: Path) -> Any:
    """Write the tokenizer to `folder` and return it; None where it cannot be built, with the reason in a file."""
    from layermesh.shared.checkpoints.gguf_tokenizer import build_tokenizer

    try:
        tokenizer = build_tokenizer(header, link)
        tokenizer.save_pretrained(folder / "tokenizer")
        return tokenizer
    except Exception as error:  # the model still runs on token ids
        reason = f"cannot build the tokenizer of {header.path}: {type(error).__name__}: {error}"
        (folder / "tokenizer_error.txt").write_text(reason[:2000], encoding="utf-8")
        return None


def _bound_memory() -> None:
    if sys.platform == "linux":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
        if soft == resource.RLIM_INFINITY or soft > limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
