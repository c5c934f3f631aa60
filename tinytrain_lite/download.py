"""Fetch a file over HTTP, taken up again where a connection was cut."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tinytrain_lite import __version__
from tinytrain_lite.errors import TinyTrainError

__all__ = ["DownloadError", "Progress", "download", "hex_digest"]

CHUNK = 1 << 16  # bytes
TIMEOUT = 30  # seconds without an answer

Progress = Callable[[int, int | None], None]  # (bytes done, bytes in all if the server says)


class DownloadError(TinyTrainError):
    """A file that does not come; says why, and what is kept for the next attempt."""


def download(url: str, draft: Path, progress: Progress) -> None:
    """Fetch the bytes that ``draft`` lacks. As long as an attempt brings new ones, a cut connection is taken up again.

    Raises DownloadError; OSError if ``draft`` cannot be written.
    """
    while True:
        before = _size(draft)
        try:
            return _attempt(url, draft, progress)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            if _size(draft) > before and not isinstance(error, urllib.error.HTTPError):
                continue
            kept = f" {_size(draft):,} bytes are kept in {draft} and not fetched again." if _size(draft) else ""
            raise DownloadError(f"cannot download {url} ({error}).{kept}") from error


def _attempt(url: str, draft: Path, progress: Progress) -> None:
    """One request. Raises ConnectionError if fewer bytes come than were announced."""
    start = _size(draft)
    request = urllib.request.Request(url, headers={"User-Agent": f"tinytrain-lite/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is lacking; the checksum decides
        raise
    with answer:
        resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked for bytes from {start}, got {answer.headers.get('Content-Range')}")
        done = start if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with draft.open("ab" if resumed else "wb") as out:
            while block := answer.read(CHUNK):
                out.write(block)
                done += len(block)
                progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"cut after {done:,} of {total:,} bytes")


def hex_digest(path: Path, algorithm: str) -> str:
    """Checksum of a file, in hexadecimal: "md5", "sha1", "sha256"."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
