"""Compute the frozen, high-resolution front of the network by bands of rows, so that its peak falls.

The early layers of a MobileNet hold the largest activations, and training does not need them again. A chain of
convolutions there (expand, depthwise, project, say) is computed a few output rows at a time: only the chain's input
and output are ever whole. Rows that two bands both need are computed twice: the price, in MACs. It is the idea of
patch-based inference in MCUNetV2 (Lin et al., NeurIPS 2021, section 3.1), in one dimension, because rows of an
(H, W, C) tensor are contiguous and a band needs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.memory import align, live_bytes
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.window import Pad

BANDED = ("conv2d", "depthwise_conv2d")
LONGEST_CHAIN = 6
BAND_COUNTS = (2, 3, 4, 6, 8, 12, 16)
FEWEST_ROWS = 4  # a kernel's set-up would outweigh a shorter band
WORTH = 0.05  # the last 5 % of the peak are not worth twice the bands


class Rows(NamedTuple):
    """Rows first..last-1 of a tensor, and the zero-point rows a window sees above and below them."""

    first: int
    last: int
    pad_top: int = 0
    pad_bottom: int = 0


@dataclass(frozen=True)
class Banding:
    """A chain of ops and how many bands it is computed in."""

    chain: tuple[Op, ...]
    bands: int
    peak: int  # arena bytes alive while it runs
    macs: int  # with the rows computed twice


def patch(graph: Graph) -> Graph:
    """Band the chain at the peak, as long as that lowers the peak."""
    graph = graph.copy()
    while True:
        live = live_bytes(graph)
        worst = max(range(len(live)), key=live.__getitem__)
        banding = _best_banding(graph, live, worst)
        if banding is None or banding.peak >= live[worst]:
            return graph.sweep().verify()
        _apply(graph, banding)


def _is_frozen(graph: Graph, op: Op) -> bool:
    """A convolution that leaves nothing behind for the backward pass but its output."""
    return op.kind in BANDED and set(op.outputs) == {"y"} and op.outputs["y"].rows_of is None and not _is_banded(op)


def _is_banded(op: Op) -> bool:
    return "band" in op.attrs


def _chain_around(graph: Graph, op: Op) -> list[Op]:
    """The longest run of frozen convolutions through `op` in which each is the only reader of the one before."""
    chain = [op]
    while (before := graph.producer(chain[0].inputs["x"])) is not None:
        if not _is_frozen(graph, before) or len(graph.readers(before.outputs["y"])) != 1:
            break
        chain.insert(0, before)
    while len(readers := graph.readers(chain[-1].outputs["y"])) == 1 and _is_frozen(graph, readers[0]):
        chain.append(readers[0])
    return chain


def _best_banding(graph: Graph, live: list[int], worst: int) -> Banding | None:
    """The cheapest banding through the op at the peak whose own peak is (nearly) the lowest, or low enough."""
    op = graph.ops[worst]
    if not _is_frozen(graph, op):
        return None
    chain = _chain_around(graph, op)
    at = chain.index(op)
    index = {other: i for i, other in enumerate(graph.ops)}
    candidates = []
    for start in range(max(0, at - LONGEST_CHAIN + 1), at + 1):
        for end in range(max(at, start + 1), min(start + LONGEST_CHAIN, len(chain))):
            part = tuple(chain[start : end + 1])
            rest = _others_alive(graph, live, part, index)
            rows = part[-1].outputs["y"].shape[0]
            candidates += [_priced(part, n, rest) for n in BAND_COUNTS if n * FEWEST_ROWS <= rows]
    if not candidates:
        return None
    inside = {id(o) for o in chain}
    elsewhere = max((b for o, b in zip(graph.ops, live, strict=True) if id(o) not in inside), default=0)
    enough = max(elsewhere, min(c.peak for c in candidates) * (1 + WORTH))
    return min((c for c in candidates if c.peak <= enough), key=lambda c: (c.macs, c.peak))


def _others_alive(graph: Graph, live: list[int], chain: tuple[Op, ...], index: dict[Op, int]) -> int:
    """Bytes of tensors outside the chain that are alive while it runs."""
    first = index[chain[0]]
    own = align(chain[0].inputs["x"].nbytes) + align(chain[0].outputs["y"].nbytes) + _scratch(chain[0])
    if live[first] < own:  # the first op works in place
        own -= align(min(chain[0].inputs["x"].nbytes, chain[0].outputs["y"].nbytes))
    return live[first] - own


def _scratch(op: Op) -> int:
    return align(definition(op.kind).scratch_bytes(op))


def bands_of(height: int, count: int) -> list[Rows]:
    """Split `height` rows into `count` bands as even as possible."""
    edges = [height * i // count for i in range(count + 1)]
    return [Rows(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def needed_rows(op: Op, out: Rows) -> Rows:
    """The input rows (and zero-point rows at the border) from which `op` computes output rows `out`."""
    kernel = op.inputs["w"].shape[1]
    height, stride, (top, _, _, _) = op.inputs["x"].shape[0], op.attrs["stride"], op.attrs["pad"]
    first, last = out.first * stride - top, (out.last - 1) * stride - top + kernel
    return Rows(max(first, 0), min(last, height), max(-first, 0), max(last - height, 0))


def _priced(chain: tuple[Op, ...], count: int, others: int) -> Banding:
    x, y = chain[0].inputs["x"], chain[-1].outputs["y"]
    peak = macs = 0
    for band in bands_of(y.shape[0], count):
        rows = band
        for op in reversed(chain):
            out, size = op.outputs["y"], rows.last - rows.first
            out_bytes = 0 if op is chain[-1] else align(size * out.nbytes // out.shape[0])
            source = op.inputs["x"]
            macs += definition(op.kind).macs(op) * size // out.shape[0]
            rows = needed_rows(op, rows)
            in_bytes = 0 if op is chain[0] else align((rows.last - rows.first) * source.nbytes // source.shape[0])
            both = in_bytes + out_bytes
            if op.kind == "depthwise_conv2d" and in_bytes and out_bytes:
                both = max(in_bytes, out_bytes)  # works in place
            peak = max(peak, both + _scratch(op))
    return Banding(chain, count, others + align(x.nbytes) + align(y.nbytes) + peak, macs)


def _apply(graph: Graph, banding: Banding) -> None:
    """Replace the chain by its bands, at the place of its first op."""
    whole = banding.chain[-1].outputs["y"]
    place = graph.ops.index(banding.chain[0])
    for op in banding.chain:
        graph.ops.remove(op)
    ops: list[Op] = []
    parts: dict[str, Tensor] = {}
    for i, band in enumerate(bands_of(whole.shape[0], banding.bands)):
        wanted = [band]  # output rows of each op, last op first
        for op in reversed(banding.chain):
            wanted.append(needed_rows(op, wanted[-1]))
        source = banding.chain[0].inputs["x"]
        x = _view(graph, source, wanted[-1], f"in{i}")
        ops.append(Op("slice_rows", banding.chain[0].name, {"x": source}, {"y": x}))
        for op, out, rows in zip(banding.chain, wanted[-2::-1], wanted[:0:-1], strict=True):
            last = op is banding.chain[-1]
            y = _view(graph, whole, out, f"band{i}") if last else _band(graph, op.outputs["y"], out, i)
            _, left, _, right = op.attrs["pad"]
            pad: Pad = (rows.pad_top, left, rows.pad_bottom, right)
            ops.append(Op(op.kind, op.name, op.inputs | {"x": x}, {"y": y}, op.attrs | {"pad": pad, "band": i}))
            x = y
        parts[f"part{i}"] = x
    ops.append(Op("concat_rows", banding.chain[-1].name, dict(parts), {"y": whole}))
    graph.ops[place:place] = ops


def _view(graph: Graph, whole: Tensor, rows: Rows, suffix: str) -> Tensor:
    """A tensor that is some rows of another, in the other's bytes."""
    t = _band(graph, whole, rows, suffix)
    t.rows_of, t.first_row = whole, rows.first
    return t


def _band(graph: Graph, like: Tensor, rows: Rows, suffix: int | str) -> Tensor:
    shape = (rows.last - rows.first, *like.shape[1:])
    return graph.value(f"{like.name}.{suffix}", shape, like.dtype, scale=like.scale, zero_point=like.zero_point)
