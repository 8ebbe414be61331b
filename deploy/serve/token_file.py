"""The secret that a server and its clients share."""

from pathlib import Path

from ...errors import BadInput


def read_token(path: Path) -> str:
    """Return the secret in a file.

    Raises:
        BadInput: if there is none.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines or len(lines[0].strip()) < 16:
        raise BadInput(f"{path} must be a file with a secret of at least 16 letters: openssl rand -hex 32 > {path}")
    return lines[0].strip()
