"""The prompt that `layermesh generate` is given."""

import sys

from layermesh.settings import Prompt
from layermesh.shared.errors import UsageError
from layermesh.text_files import decode_text


def read_prompt(text: str | None, ids: str | None) -> Prompt:
    """Return the prompt from the command line, as it is, or from standard input: a text, or a list of token ids.

    Text of standard input comes without byte order mark and carriage returns. Raises UsageError.
    """
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
    return decode_text(sys.stdin.buffer.read(), "standard input").removesuffix("\n")
