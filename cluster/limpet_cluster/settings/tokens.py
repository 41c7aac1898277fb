"""The file with the bearer tokens of the HTTP API."""

from __future__ import annotations

import os
from pathlib import Path


class TokenFileError(ValueError):
    """The token file cannot be used; the message names it and says what would be right."""


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """Return the bearer tokens of a file: one per line, so that they can be rotated.

    Raises:
        TokenFileError: the file cannot be read, is open to others, or holds no good token.
    """
    name = f"api_token_file={str(path)!r}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(65_537)
    except OSError as error:
        raise TokenFileError(f"{name}: {error.strerror}; expected a file with a token") from None
    if mode & 0o007:
        raise TokenFileError(f"{name}: mode {mode & 0o777:04o} lets anybody in; expected 0600")
    tokens = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not tokens or len(content) > 65_536:
        raise TokenFileError(f"{name}: expected one token per line, at most 64 KiB")
    for token in tokens:
        if len(token) < 16 or not all(33 <= byte <= 126 for byte in token):
            raise TokenFileError(
                f"{name}: a token has at least 16 characters, visible ASCII without blanks"
            )
    return tokens
