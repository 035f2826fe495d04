"""The prompt that `layermesh generate` is given."""

import sys

from layermesh.settings import Prompt
from layermesh.shared.errors import UsageError


def read_prompt(text: str | None, ids: str | None) -> Prompt:
    """Return the prompt from the command line or standard input: a text, or a list of token ids."""
    if ids is not None:
        if text is not None:
            raise UsageError("give a prompt or --prompt-ids, not both.")
        try:
            return [int(token_id) for token_id in ids.split(",")]
        except ValueError as error:
            raise UsageError(f"--prompt-ids takes numbers with commas between them, such as 5,6,7, not {ids!r}.") from error
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise UsageError('there is no prompt. Say: layermesh generate "Why is the sky blue?"')
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text at byte {error.start}.") from error
