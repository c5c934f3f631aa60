"""Where Renode is, and how it gets there: `tinytrain setup renode`.

Looked for in this order: what pyrenode3 itself reads (``PYRENODE_BIN``, ``PYRENODE_BUILD_DIR``, ``PYRENODE_PKG``),
``RENODE_ROOT`` (a folder with a portable release or a build), the folder that `tinytrain setup renode` fills, PATH.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinytrain_lite.download import DownloadError, Progress, download, hex_digest
from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.target.choose import TargetUnavailable
from tinytrain_lite.toolchain import cache_dir

VERSION = "1.16.1"
RELEASE = f"https://github.com/renode/renode/releases/download/v{VERSION}"
PYRENODE = "https://github.com/antmicro/pyrenode3/archive/dde4a47660ef1b8874a91ed514a0bd04b33a5add.zip"
CHOSEN_BY = ("PYRENODE_BIN", "PYRENODE_BUILD_DIR", "PYRENODE_PKG")


class SetupError(TinyTrainError):
    """Renode could not be installed; the message says what to download by hand, and where to put it."""


@dataclass(frozen=True)
class Release:
    """An official portable release: file name and SHA-256, as GitHub shows it beside the download."""

    file: str
    sha256: str


RELEASES = {
    ("Linux", "x86_64"): Release(
        f"renode-{VERSION}.linux-portable-dotnet.tar.gz",
        "00e113cdbd0f5354cf2f64bbe3f5a070d8958409542fca66e45ac97d982938c0",
    ),
    ("Linux", "aarch64"): Release(
        f"renode-{VERSION}.linux-arm64-portable-dotnet.tar.gz",
        "fff3a098c96ed0a4ffbdff3f028c9c5fde432db09587c7bd7c99406180f90007",
    ),
    ("Windows", "AMD64"): Release(
        f"renode-{VERSION}.windows-portable-dotnet.zip",
        "d09b7934cfd560cd06bde8f131ef78f521f10d423d5aac6096f2a583224aeb3e",
    ),
}


def platform_files() -> Path:
    """Directory of the .repl and .resc files: ``renode/`` of a checkout, ``tinytrain_lite/_renode`` of a wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_renode", package.parent / "renode"):
        if (candidate / "stm32f746.repl").is_file():
            return candidate
    raise TargetUnavailable(f"the Renode platform is missing beside {package}; reinstall tinytrain-lite")


def install_dir() -> Path:
    """Where `tinytrain setup renode` puts the release."""
    return cache_dir() / f"renode-{VERSION}"


def find_renode() -> tuple[str, Path]:
    """(variable of pyrenode3, path), e.g. ("PYRENODE_BIN", /opt/renode/renode).

    Raises TargetUnavailable, saying what is missing and how to get it.
    """
    if importlib.util.find_spec("pyrenode3") is None:
        raise TargetUnavailable("pyrenode3 is not installed; run `tinytrain setup renode`")
    for variable in CHOSEN_BY:
        if os.environ.get(variable):
            return variable, _existing(variable, Path(os.environ[variable]))
    if os.environ.get("RENODE_ROOT"):
        root = _existing("RENODE_ROOT", Path(os.environ["RENODE_ROOT"]))
        found = _usable(root)
        if found is None:
            raise TargetUnavailable(f"RENODE_ROOT={root} holds neither a portable Renode nor a built source tree")
        return found
    places = [install_dir()]
    on_path = shutil.which("renode")
    if on_path:
        places.append(Path(on_path).resolve().parent)
    for place in places:
        found = _usable(place)
        if found:
            return found
    hint = f"; {on_path} is not a portable .NET release" if on_path else ""
    raise TargetUnavailable(f"Renode is not installed; run `tinytrain setup renode`, or set RENODE_ROOT{hint}")


def _existing(variable: str, path: Path) -> Path:
    if not path.exists():
        raise TargetUnavailable(f"{variable} is {path}, which does not exist")
    return path


def _usable(folder: Path) -> tuple[str, Path] | None:
    """How pyrenode3 is told of a Renode in ``folder``, or None if there is none that it can load."""
    binary = folder / ("Renode.exe" if platform.system() == "Windows" else "renode")
    runtime = any(folder.glob("libcoreclr.*")) or (folder / "coreclr.dll").is_file()
    if binary.is_file() and runtime:
        return "PYRENODE_BIN", binary
    if (folder / "output" / "bin" / "Release").is_dir():
        return "PYRENODE_BUILD_DIR", folder
    return None


def setup_renode(say: Callable[[str], None], progress: Progress) -> Path:
    """Install the pinned Renode and pyrenode3; returns Renode's folder. ``progress(bytes done, bytes in all)``.

    Nothing is downloaded twice; a cut download is taken up again. Raises SetupError: unknown platform, no network, or a
    file that is not the one that was pinned.
    """
    key = (platform.system(), platform.machine())
    if key not in RELEASES:
        raise SetupError(
            f"there is no portable Renode {VERSION} for {key[0]} on {key[1]} that this command can install; install it "
            "from https://renode.io and set RENODE_ROOT to its folder"
        )
    release, target = RELEASES[key], install_dir()
    if _usable(target) is None:
        archive = _fetch(release, progress)
        say(f"unpacking into {target}")
        _unpack(archive, target)
    if importlib.util.find_spec("pyrenode3") is None:
        say("installing pyrenode3")
        _install_pyrenode()
    return target


def _fetch(release: Release, progress: Progress) -> Path:
    """The archive, from the download folder or from the network, with the right SHA-256."""
    archive = cache_dir() / "downloads" / release.file
    archive.parent.mkdir(parents=True, exist_ok=True)
    url = f"{RELEASE}/{release.file}"
    if not archive.is_file():
        draft = archive.with_name(f"{archive.name}.part")
        advice = f"Download it where there is a network, put it at {archive}, and run `tinytrain setup renode` again"
        try:
            download(url, draft, progress)
            os.replace(draft, archive)
        except DownloadError as error:
            raise SetupError(f"{error} {advice}") from None
        except OSError as error:
            raise SetupError(f"cannot download {url} ({error}). {advice}") from None
    found = hex_digest(archive, "sha256")
    if found != release.sha256:
        raise SetupError(
            f"{archive} is not Renode {VERSION}: its SHA-256 is {found}, {release.sha256} is expected. "
            f"Delete it and run `tinytrain setup renode` again; it comes from {url}"
        )
    return archive


def _unpack(archive: Path, target: Path) -> None:
    """The archive's one folder becomes ``target``, in one step."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as bundle:
                bundle.extractall(scratch)
        else:
            with tarfile.open(archive) as bundle:
                bundle.extractall(scratch, filter="tar")
        (folder,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def _install_pyrenode() -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"pyrenode3 @ {PYRENODE}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(
            f"pyrenode3 could not be installed: {done.stderr.strip()[-400:]}\nWhere there is a network, download "
            f"{PYRENODE} and the wheels of pythonnet, clr-loader, cffi and pycparser (`pip download pythonnet`); then, "
            "here, `pip install --no-index --find-links FOLDER pythonnet` and `pip install --no-build-isolation ZIP`"
        )
