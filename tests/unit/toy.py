"""Builds fixtures/toy_model.c, with macros set, for the tests of firmware and targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parent / "fixtures" / "toy_model.c"


def toy_dir(parent: Path, **macros: int | str) -> Path:
    """A model directory holding the toy; ``toy_dir(tmp, SIDE=24)`` defines ``TOY_SIDE`` as 24."""
    directory = parent / "_".join(["toy", *(f"{name}_{value}" for name, value in macros.items())])
    directory.mkdir(exist_ok=True)
    defines = "".join(f"#define TOY_{name} {value}\n" for name, value in macros.items())
    (directory / "model.c").write_text(defines + SOURCE.read_text("utf-8"), "utf-8")
    return directory


def images(count: int, side: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random int8 images (count, side, side, 1) and labels below 3."""
    random = np.random.default_rng(seed)
    return random.integers(-128, 128, (count, side, side, 1)).astype(np.int8), random.integers(0, 3, count)
