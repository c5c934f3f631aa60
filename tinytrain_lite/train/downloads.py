"""Get the files of a published data set: resumed where cut, checked, unpacked; each step whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import ssl
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tinytrain_lite import __version__
from tinytrain_lite.errors import DatasetError
from tinytrain_lite.train.sources import RemoteFile, Source

__all__ = ["obtain"]

CHUNK = 1 << 16  # bytes
TIMEOUT = 30  # seconds without an answer


def obtain(source: Source, part: str, folder: Path) -> None:
    """Make sure that ``folder`` holds, unpacked, the files that a part of the data set needs.

    What is there stays untouched; what lies there as an archive is checked and unpacked; the rest is downloaded.
    Raises DatasetError: no network (it lists what to download from where, and where to put it), a file that is
    not the published one, an archive that would write outside its folder.
    """
    needed = [file for file in source.files if file.part in (None, part)]
    missing = [file for file in needed if not (folder / (file.holds or file.name)).exists()]
    try:
        for file in missing:
            target = folder / file.name
            if not target.exists():
                folder.mkdir(parents=True, exist_ok=True)
                absent = [f for f in missing if not (folder / f.name).exists()]
                _download(file, target, _by_hand(source, absent, folder))
            elif _digest(target, file.checksum) != file.checksum:
                raise DatasetError(
                    f"{target} is not the published file: its checksum is {_digest(target, file.checksum)}, expected "
                    f"{file.checksum}; delete it, and get {file.url} again"
                )
            if file.holds:
                _unpack(target, file.holds)
    except OSError as error:
        raise DatasetError(f"{source.title}: cannot write to {folder}: {error}; choose another --data-path") from error


def _by_hand(source: Source, files: list[RemoteFile], folder: Path) -> str:
    lines = [f"  {f.url}\n    as {(folder / f.name).resolve()} ({f.checksum})" for f in files]
    return (
        f"Where there is a network, download\n{chr(10).join(lines)}\n"
        f"and run the command again. {source.title}: {source.page} (terms: {source.terms})"
    )


def _download(file: RemoteFile, target: Path, advice: str) -> None:
    """Download to ``target``.part, from where it ends; the file gets its name once its checksum is right.

    As long as an attempt brings new bytes, a cut connection is taken up again.
    """
    draft = target.with_name(f"{target.name}.part")
    while True:
        before = _size(draft)
        try:
            _attempt(file, draft)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            if _size(draft) > before and not isinstance(error, urllib.error.HTTPError):
                continue
            kept = f" {_size(draft):,} bytes are kept in {draft} and not fetched again." if _size(draft) else ""
            raise DatasetError(f"cannot download {file.url} ({error}).{kept} {advice}") from error
    found = _digest(draft, file.checksum)
    if found != file.checksum:
        draft.unlink()
        raise DatasetError(
            f"{file.url} is not the published file: its checksum is {found}, expected {file.checksum}. "
            "It was deleted; run the command again, or get the file elsewhere and put it at "
            f"{target.resolve()}"
        )
    os.replace(draft, target)


def _attempt(file: RemoteFile, draft: Path) -> None:
    """One request for the bytes that ``draft`` lacks. Raises ConnectionError if fewer come than were announced."""
    start = _size(draft)
    request = urllib.request.Request(file.url, headers={"User-Agent": f"tinytrain-lite/{__version__}"})
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
        with draft.open("ab" if resumed else "wb") as out, _bar() as bar:
            task = bar.add_task(file.name, total=total, completed=done)
            while block := answer.read(CHUNK):
                out.write(block)
                done += len(block)
                bar.update(task, completed=done)
    if total is not None and done < total:
        raise ConnectionError(f"cut after {done:,} of {total:,} bytes")


def _unpack(archive: Path, holds: str) -> None:
    """The folder ``holds`` of a tar archive appears beside it, in one step."""
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as scratch:
            with (
                _bar() as bar,
                bar.open(archive, "rb", description=f"unpacking {archive.name}") as stream,
                tarfile.open(fileobj=stream, mode="r|*") as bundle,
            ):
                bundle.extractall(scratch, filter="data")
            if not (Path(scratch) / holds).is_dir():
                raise DatasetError(f"{archive} holds no folder {holds}")
            os.replace(Path(scratch) / holds, archive.parent / holds)
    except tarfile.FilterError as error:
        raise DatasetError(f"{archive} was not unpacked, it is not to be trusted: {error}") from error
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{archive} is damaged ({error}); delete it and get it again") from error


def _digest(path: Path, checksum: str) -> str:
    """The checksum of a file, in the algorithm of ``checksum``, written like it."""
    algorithm = checksum.split(":")[0]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar
