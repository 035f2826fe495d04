"""Text from files of any editor: without byte order marks and carriage returns."""

import codecs
from pathlib import Path
from typing import Final

from layermesh.shared.errors import UsageError

MAX_TEMPLATE_BYTES: Final = 1 << 20
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def decode_text(content: bytes, name: str) -> str:
    """Return the text that `content`, read from `name`, holds, with "\\n" at the end of every line.

    A byte order mark says whether it is UTF-8, UTF-16 or UTF-32, and is no part of the text; without one it is UTF-8. Raises
    UsageError that names the first byte that is not text.
    """
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise UsageError(
            f"{name}, line {line}: not {kind} text at byte {error.start} of the file. Save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(
            f"{name}, line {line}: a NUL, which no text has. It may be UTF-16 without a byte order mark. Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_template(path: Path) -> str:
    """Return the chat template in the file at `path`. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"--chat-template {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_TEMPLATE_BYTES:
        raise UsageError(f"--chat-template {path} has more than {MAX_TEMPLATE_BYTES:,} bytes. Check that it is a template.")
    text = decode_text(content, f"--chat-template {path}")
    if "{{" not in text and "{%" not in text:
        raise UsageError(f"--chat-template {path} holds no Jinja template: neither {{{{ nor {{% is in it. Check the file.")
    return text
