"""Activations of the frozen layers, computed once for a data set and kept in files.

A file belongs to one tensor of one network on one set of images: its name is a hash of the images, of every op
and constant the tensor depends on, and of the arithmetic. So schemes, seeds and processes share what is equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.train.datasets import Dataset
from tinytrain_lite.train.int8 import Network

__all__ = ["Features", "frontier_features"]

Features = dict[str, np.ndarray]  # tensor name -> (N, C, H, W), int8 or (fp32 twin) float32
BATCH = 32


def frontier_features(network: Network, data: Dataset, directory: Path | None = None) -> Features:
    """The frontier tensors of `network` for every image of `data`; files in `directory` are reused and added."""
    names = [t.name for t in network.frontier]
    graph = network.graph
    pixels = quantize_image(data.images).transpose(0, 3, 1, 2)
    known: Features = {graph.image.name: pixels}
    files: dict[str, Path] = {}
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        images = hashlib.sha256(data.images.tobytes()).hexdigest()
        frozen = [t for name in names for op in _needed(graph, graph.tensors[name]) for t in op.outputs.values()]
        files = {t.name: directory / f"{_key(network, t, images)}.npy" for t in frozen}
        known |= {name: np.load(file, mmap_mode="r") for name, file in files.items() if file.exists()}
    missing = [name for name in names if name not in known]
    if missing:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in missing}
        sources = _sources(graph, missing, known)
        for start in range(0, max(len(pixels), 1), BATCH):  # an empty part has empty features
            batch = {t: torch.from_numpy(np.array(known[t][start : start + BATCH])) for t in sources}
            for name, value in network.evaluate(batch, missing).items():
                parts[name].append(value.numpy())
        for name in missing:
            known[name] = np.concatenate(parts[name])
            if name in files:
                _write(files[name], known[name])
    return {name: known[name] for name in names}


def _sources(graph: Graph, wanted: Iterable[str], known: Features) -> set[str]:
    """The known tensors nearest to the wanted ones: the image, or what another scheme has left behind."""
    needed = set(wanted)
    for op in reversed(graph.ops):
        if op.outputs["y"].name in needed - known.keys():
            needed |= {t.name for t in op.inputs.values()}
    return needed & known.keys()


def _key(network: Network, tensor: Tensor, images: str) -> str:
    digest = hashlib.sha256(f"{images} {type(network).__name__} {network.graph.image} {tensor}".encode())
    for op in _needed(network.graph, tensor):
        digest.update(str(op).encode())
        for t in op.inputs.values():
            if t.data is not None:
                digest.update(t.data.tobytes())
                digest.update(np.asarray(t.scale if t.scale is not None else 0.0).tobytes())
    return digest.hexdigest()[:32]


def _needed(graph: Graph, tensor: Tensor) -> list[Op]:
    needed, ops = {tensor.name}, []
    for op in reversed(graph.ops):
        if op.outputs["y"].name in needed:
            ops.append(op)
            needed |= {t.name for t in op.inputs.values()}
    return ops


def _write(file: Path, array: np.ndarray) -> None:
    """Whole or not at all: another process may be waiting for the same file."""
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as stream:
        np.save(stream, array)
    part.replace(file)
