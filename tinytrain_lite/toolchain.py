"""The pinned C compiler, and the two things built with it.

    elf = build_firmware(model_dir, board="nucleo-f746zg")   # the bare-metal ELF
    library = build_host_library(model_dir)                  # the same C as a shared library

``model_dir`` holds the generated C of one model (every ``*.c`` and ``*.h`` in it). The runtime and the
kernels come from ``firmware/``. The compiler is the clang inside the PyPI wheel ``ziglang``: one version for
everybody, no root needed. Results lie in a cache, named by the hash of all that went in, so an
unchanged build costs milliseconds; ``TINYTRAIN_CACHE`` moves the cache.

Flags that the integer contract depends on: ``-ffp-contract=off`` (a*b+c is two roundings everywhere) and the
absence of ``-ffast-math``. ``-fno-math-errno`` only lets rintf become one instruction.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from tinytrain_lite.board import DEFAULT_BOARD, firmware_dir, load_board
from tinytrain_lite.errors import DoesNotFitError, TinyTrainError

COMMON_FLAGS = (
    "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fno-math-errno",
    "-fno-sanitize=undefined", "-fno-stack-protector", "-fomit-frame-pointer",
)  # fmt: skip
DEVICE_FLAGS = (
    "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7+fp_armv8d16sp", "-g",
    "-ffunction-sections", "-fdata-sections", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables",
    "-Wl,--gc-sections", "-Wl,--entry=tt_reset",
)  # fmt: skip


class ToolchainError(TinyTrainError):
    """The compiler is missing, or refused its input; the message holds what it said."""


def cache_dir() -> Path:
    """Where builds are kept: ``$TINYTRAIN_CACHE``, or the platform's cache directory."""
    chosen = os.environ.get("TINYTRAIN_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tinytrain-lite"))


@functools.cache
def compiler_name() -> str:
    """Name and version for reports: instruction counts differ between compilers."""
    try:
        return f"zig cc {importlib.metadata.version('ziglang')}"
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainError("the C compiler is not installed: pip install ziglang") from None


def build_firmware(model_dir: Path, *, board: str = DEFAULT_BOARD) -> Path:
    """Compile and link a model into the ELF for a board; returns its path in the cache.

    Raises ToolchainError with the compiler's words, BoardError for an unknown board, and DoesNotFitError for a
    model one byte too large: the linker says which section is over, and by how much.
    """
    description = load_board(board)
    generated = {"tt_board.h": description.header(), "board.ld": description.linker_script()}
    return _build("firmware.elf", model_dir, ["board"], DEVICE_FLAGS, generated)


def build_host_library(model_dir: Path) -> Path:
    """Compile a model into a shared library for this computer; returns its path in the cache.

    x86-64 is compiled for the v2 level (SSE4.1, every such processor since 2009), whose one-instruction rounding
    is what the kernels need; other machines for their baseline. Bytes computed are the same everywhere.
    """
    level = ["-mcpu=x86_64_v2"] if platform.machine().lower() in ("x86_64", "amd64") else ["-mcpu=baseline"]
    return _build("libmodel.so", model_dir, ["host"], [*level, "-shared", "-fPIC", "-fvisibility=hidden"], {})


def build_native(source: Path) -> Path:
    """Compile one C file of the package itself into a shared library; returns its path in the cache."""
    key = _digest([compiler_name(), platform.platform(), *COMMON_FLAGS], [source])
    target = cache_dir() / key / f"{source.stem}.so"
    if not target.is_file():
        _compile([*COMMON_FLAGS, "-shared", "-fPIC", str(source)], target, source.parent)
    return target


def _build(
    product: str, model_dir: Path, runtime: Sequence[str], flags: Sequence[str], generated: dict[str, str]
) -> Path:
    """Sources: the model, the kernels, the protocol and one runtime directory; ``generated`` files go beside them."""
    firmware = firmware_dir()
    model_sources = sorted(model_dir.glob("*.c"))
    if not model_sources:
        raise ToolchainError(f"{model_dir} holds no generated C (*.c); run `tinytrain compile` first")
    sources = [path for part in (".", "kernels", *runtime) for path in sorted((firmware / part).glob("*.c"))]
    headers = [path for part in ("include", "kernels", *runtime) for path in sorted((firmware / part).glob("*.h"))]
    model_headers = sorted(model_dir.glob("*.h"))
    inputs = [*model_sources, *model_headers, *sources, *headers]
    key = _digest([product, compiler_name(), platform.machine(), *COMMON_FLAGS, *flags, *generated.values()], inputs)
    target = cache_dir() / key / product
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        # What differs between models lies in the working directory under fixed names, so that every kernel is compiled
        # with the same command line and comes from the compiler's own cache.
        for path in (*model_sources, *model_headers):
            _write(Path(scratch, "model", path.name), path.read_bytes())
        for name, text in generated.items():
            _write(Path(scratch, "generated", name), text.encode())
        arguments = [
            *COMMON_FLAGS, *flags,
            *(f"-Wl,-T,generated/{name}" for name in generated if name.endswith(".ld")),
            # Debug information names files, not this computer's directories: the same input gives the same ELF.
            f"-ffile-prefix-map={firmware}=firmware", "-fdebug-compilation-dir=.",
            f"-I{firmware / 'include'}", "-Imodel", "-Igenerated",
            *(f"model/{path.name}" for path in model_sources), *map(str, sources),
        ]  # fmt: skip
        _compile(arguments, target, Path(scratch))
    return target


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def _digest(words: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.parent.name}/{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:24]


def _compile(arguments: Sequence[str], target: Path, directory: Path) -> None:
    """Run the compiler in ``directory``; put its output at ``target`` in one step, so that nobody sees half a file."""
    compiler_name()  # raises when it is missing
    zig_cache = str(cache_dir() / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig_cache, "ZIG_LOCAL_CACHE_DIR": zig_cache}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        command = [sys.executable, "-m", "ziglang", "cc", *arguments, "-o", str(output)]
        done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
        if done.returncode != 0:
            too_big = "will not fit in region" in done.stderr
            kind, what = (DoesNotFitError, "does not fit the chip") if too_big else (ToolchainError, "does not build")
            raise kind(f"{target.name} {what} ({compiler_name()}):\n{done.stderr.strip()}")
        os.replace(output, target)
