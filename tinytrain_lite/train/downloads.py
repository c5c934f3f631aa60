"""Get the files of a published data set: resumed where cut, checked, unpacked; each step whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tinytrain_lite.download import DownloadError, download, hex_digest
from tinytrain_lite.errors import DatasetError
from tinytrain_lite.train.sources import RemoteFile, Source

__all__ = ["obtain"]


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
    """Download to ``target``.part, from where it ends; the file gets its name once its checksum is right."""
    draft = target.with_name(f"{target.name}.part")
    with _bar() as bar:
        task = bar.add_task(file.name, total=None)
        try:
            download(file.url, draft, lambda done, total: bar.update(task, completed=done, total=total))
        except DownloadError as error:
            raise DatasetError(f"{error} {advice}") from error
    found = _digest(draft, file.checksum)
    if found != file.checksum:
        draft.unlink()
        raise DatasetError(
            f"{file.url} is not the published file: its checksum is {found}, expected {file.checksum}. "
            "It was deleted; run the command again, or get the file elsewhere and put it at "
            f"{target.resolve()}"
        )
    os.replace(draft, target)


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
    return f"{algorithm}:{hex_digest(path, algorithm)}"


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar
