"""Figures drawn with matplotlib: without a window, and the same bytes from the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinytrain_lite.errors import UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "write_figure"]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises UnsupportedError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("figures need matplotlib; `pip install 'tinytrain-lite[search]'`") from None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Figure, path: Path) -> None:
    """Write it, making folders as needed; the suffix of `path` chooses SVG or PNG."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "tinytrain"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
