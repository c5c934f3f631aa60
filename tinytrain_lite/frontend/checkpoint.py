"""Read the paper's checkpoint files: a zip archive with one pickle of dicts, lists, numbers and NumPy arrays.

A pickle is a program. This one runs with nothing but inert stand-ins for the four names that a pickled
array mentions, so it can neither import nor call anything; arrays are built here, from checked bytes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinytrain_lite.errors import TinyTrainError

__all__ = ["CheckpointError", "read_checkpoint", "unpickle"]

MAX_BYTES = 64 << 20  # unpacked; the largest of the three published files has under 1 MB
DTYPES = {"u1": np.uint8, "i1": np.int8, "i4": np.int32, "i8": np.int64, "f4": np.float32, "f8": np.float64}


class CheckpointError(TinyTrainError):
    """A checkpoint that is missing, damaged, not of the expected kind, or not to be trusted."""


class _Dtype:
    """Stand-in for `numpy.dtype`: remembers its code, e.g. "f4", and its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stand-in for `numpy.ndarray`: remembers the state (version, shape, dtype, column-major, bytes)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        """The array. Raises ValueError for a state that no array of numbers has."""
        _, shape, dtype, column_major, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in DTYPES or dtype.order not in "|<=":
            raise ValueError("an array is not of uint8, or little-endian int8, int32, int64, float32 or float64")
        if isinstance(raw, str):  # bytes of Python 2, read as latin1
            raw = raw.encode("latin1")
        if not isinstance(raw, bytes) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array has a shape or contents that are no numbers")
        flat = np.frombuffer(raw, DTYPES[dtype.code])
        return flat.reshape(shape, order="F" if column_major else "C").copy()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes: a string and "latin1"."""
    if encoding != "latin1":
        raise ValueError(f"bytes are encoded as {encoding!r}, not latin1")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only plain dicts, lists, numbers and NumPy arrays are admitted"
            ) from None


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The checkpoint as nested dicts and lists of numbers, strings, None and arrays.

    Raises CheckpointError, naming the file and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; the paper's checkpoints lie in algorithm/assets/mcu_models "
            "of github.com/mit-han-lab/tiny-training"
        )
    try:
        content = unpickle(_pickle_bytes(path))
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise CheckpointError(f"{path}: not a checkpoint that can be read safely: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a dict of layers")
    return content


def unpickle(raw: bytes, encoding: str = "ASCII") -> Any:
    """The dicts, lists, numbers, strings and arrays of a pickle; ``encoding`` is that of Python 2's strings.

    A hostile pickle is harmless, but it can make this raise anything: catch Exception.
    """
    return _plain(_Unpickler(io.BytesIO(raw), encoding=encoding).load(), {})


def _pickle_bytes(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if len(entries) != 1:
                raise CheckpointError(f"{path}: the zip archive holds {len(entries)} files data.pkl; expected one")
            if entries[0].file_size > MAX_BYTES:
                raise CheckpointError(
                    f"{path}: data.pkl unpacks to {entries[0].file_size:,} bytes, more than {MAX_BYTES:,}"
                )
            with archive.open(entries[0]) as stream:
                return stream.read(MAX_BYTES)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a complete zip archive ({error}); fetch the file again") from error


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """Replace stand-ins by arrays. Every object is visited once, so a pickle cannot blow up by sharing."""
    if isinstance(value, _Array):
        return value.build()
    if isinstance(value, dict | list | tuple):
        if id(value) in seen:
            if seen[id(value)] is None:
                raise ValueError("a container holds itself")
            return seen[id(value)]
        seen[id(value)] = None
        if isinstance(value, dict):
            seen[id(value)] = {key: _plain(item, seen) for key, item in value.items()}
        else:
            seen[id(value)] = [_plain(item, seen) for item in value]
        return seen[id(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
