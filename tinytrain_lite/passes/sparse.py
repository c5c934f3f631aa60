"""Apply an update scheme to a forward graph: choose what learns, and split weights by input channel.

A layer's bias, or its weight, becomes a parameter in SRAM; everything else stays constant in flash. Where only a
fraction of a weight's input channels learns, the channels of largest magnitude do ("magnitude+" in the paper's
code; paper section 3.2): they become the parameter `w`, the others stay behind as the constant `w_frozen`, and
`perm` lists the channels in their new order. The permutation is local to the layer, so residual chains, whose
layers would all ask for different orders, need no common one. A depthwise layer learns whole channels: `rows`.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.sparse.scheme import UpdateScheme


def apply_scheme(graph: Graph, scheme: UpdateScheme) -> Graph:
    """Raises UnsupportedError if the scheme names a layer the graph lacks or asks for a slice it cannot take."""
    graph = graph.copy()
    layers = {op.name: op for op in graph if "w" in op.inputs}
    for name in scheme.resolve_biases(list(layers)):
        layers[name].inputs["b"].role = "param"
    for name, ratio in scheme.resolve_weights(list(layers)).items():
        op = layers[name]
        if ratio == 1:
            op.inputs["w"].role = "param"
        elif op.kind == "conv2d":
            _split_input_channels(graph, op, ratio)
        elif op.kind == "depthwise_conv2d":
            magnitude = np.abs(op.inputs["w"].data.astype(np.int64)).sum(axis=(1, 2))  # type: ignore[union-attr]
            rows = np.sort(_largest(magnitude, ratio)).astype(np.uint16)
            op.inputs["w"].role = "param"
            op.inputs["rows"] = graph.const(f"{name}.rows", rows)
        else:
            raise UnsupportedError(
                f"scheme '{scheme.name}': layer '{name}' ({op.kind}) cannot learn a fraction {ratio}; name it with 1"
            )
    return graph.sweep().verify()


def _largest(magnitude: np.ndarray, ratio: float) -> np.ndarray:
    """Indices of the largest entries first; at least one; ties go to the lower index."""
    count = max(1, round(len(magnitude) * ratio))
    return np.argsort(-magnitude, kind="stable")[:count]


def _split_input_channels(graph: Graph, op: Op, ratio: float) -> None:
    w = op.inputs["w"]
    assert w.data is not None
    trained = np.sort(_largest(_channel_norm(w), ratio))
    if len(trained) == w.shape[3]:
        w.role = "param"
        return
    frozen = np.setdiff1d(np.arange(w.shape[3]), trained)
    shape = (*w.shape[:3], len(trained))
    op.inputs["w"] = graph.value(
        f"{w.name}.trained", shape, "int8", role="param", scale=w.scale, data=w.data[..., trained]
    )
    op.inputs["w_frozen"] = graph.const(f"{w.name}.frozen", w.data[..., frozen])
    op.inputs["perm"] = graph.const(f"{op.name}.perm", np.concatenate([trained, frozen]).astype(np.uint16))


def _channel_norm(w: Tensor) -> np.ndarray:
    """Squared L2 norm of each input channel in real units: int8 values of different rows have different scales."""
    real = w.data.astype(np.float64) * np.asarray(w.scale, np.float64).reshape(-1, 1, 1, 1)  # type: ignore[union-attr]
    return (real**2).sum(axis=(0, 1, 2))
