"""Figures that others published, or that we measured on their code, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row of the comparison; None where the source gives no such number."""

    source: str
    sram_bytes: int | None = None
    instructions: int | None = None  # of one training step
    milliseconds: float | None = None  # of one training step on an STM32F746
    flash_bytes: int | None = None


PAPER = "Lin et al. 2022, arXiv 2206.15472, measured on an STM32F746 board"


def _paper(full: int, sparse: int, reordered: int, tflite_ms: int, ms: int) -> tuple[Figure, ...]:
    """Peak SRAM in KB and latency of the paper's figure of memory and speed on an STM32F746, 128x128, batch 1."""
    return (
        Figure("paper, full update", full * 1024),
        Figure("paper, sparse update", sparse * 1024),
        Figure("paper, sparse, reordered", reordered * 1024, milliseconds=ms),
        Figure("paper, sparse, TF-Lite", milliseconds=tflite_ms),
    )


_FIGURES: dict[str, tuple[Figure, ...]] = {
    "mcunet-5fps": (
        *_paper(3650, 560, 173, 5607, 546),
        # The published C of this scheme for 10 classes, built with gcc 12 -Ofast, counted by us in an emulator.
        Figure("paper's code, 49kb", 233_168, 106_400_000, flash_bytes=478_144),
    ),
    "mbv2-w0.35": _paper(2939, 335, 141, 3448, 373),
    "proxyless-w0.3": _paper(2745, 326, 135, 4111, 443),
}


def figures(model: str) -> tuple[Figure, ...]:
    """What is known of a model by the graph's name; empty if nothing is."""
    return _FIGURES.get(model, ())
