"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tinytrain_lite.errors import TinyTrainError


class OutputError(TinyTrainError):
    """A file that cannot be written."""


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, making folders as needed; a reader sees the old file or the new one. Raises OutputError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, "utf-8")
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from None
