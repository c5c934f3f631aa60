"""One file per op family; importing this package registers them all."""

from tinytrain_lite.ops import (  # noqa: F401  (imported to register)
    add,
    avg_pool,
    conv2d,
    depthwise,
    epilogue,
    linear,
    rows,
    softmax_cross_entropy,
    update,
)
from tinytrain_lite.ops.base import REGISTRY, OpDefinition, definition

__all__ = ["REGISTRY", "OpDefinition", "definition"]
