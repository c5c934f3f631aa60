"""What an op has to say about itself; one subclass per kind, one file per op family.

To add an op: subclass `OpDefinition` in a new file of this folder, and write one kernel in
`firmware/kernels/`. `check` is the shape rule, `reference` *the* definition of the arithmetic (NumPy,
bit for bit what the C kernel computes), `vjp` the gradient rule, `call` the C call that codegen prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.errors import GraphError, UnsupportedError
from tinytrain_lite.graph import Op, Tensor

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine

REGISTRY: dict[str, OpDefinition] = {}


class OpDefinition:
    """Base class. A subclass sets `kind` and is registered when its module is imported."""

    kind = ""
    has_kernel = True  # False for views, which move no bytes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            REGISTRY[cls.kind] = cls()

    def check(self, op: Op) -> None:
        """Shape and dtype rule. Raises GraphError; `Graph.verify` adds the op's name."""
        raise NotImplementedError

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        """Compute the outputs by role from the input values `v` by role."""
        raise NotImplementedError

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        """Append the ops that carry gradient from the outputs to the inputs."""
        raise UnsupportedError(f"op '{op.name}' ({op.kind}) has no gradient rule")

    def call(self, op: Op, c: Emitter) -> str:
        """The C call."""
        raise UnsupportedError(f"op '{op.name}' ({op.kind}) has no kernel; run the fuse pass before codegen")

    def scratch_bytes(self, op: Op) -> int:
        """Arena bytes the kernel needs while it runs."""
        return 0

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        """(output role, input role) pairs that may share their bytes if the input dies here."""
        return []

    def macs(self, op: Op) -> int:
        """Multiply-accumulates, for the report."""
        return 0


def definition(kind: str) -> OpDefinition:
    """Look a kind up. Raises GraphError if nobody defined it."""
    try:
        return REGISTRY[kind]
    except KeyError:
        raise GraphError(f"unknown op kind '{kind}' (known: {', '.join(sorted(REGISTRY))})") from None


def expect(condition: bool, message: str) -> None:
    """Raise GraphError(message) unless the condition holds."""
    if not condition:
        raise GraphError(message)


def expect_tensor(t: Tensor, dtype: str, shape: tuple[int, ...]) -> None:
    expect(
        t.dtype == dtype and t.shape == shape,
        f"tensor '{t.name}' is {t.dtype}{list(t.shape)}, expected {dtype}{list(shape)}",
    )


def check_clamp(op: Op) -> None:
    """`clamp` must be a range within int8 and the mask, if any, one bit per output element."""
    y = op.outputs["y"]
    lo, hi = op.attrs["clamp"]
    expect(-128 <= lo < hi <= 127, f"clamp range {lo}..{hi} is not within int8")
    if "mask" in op.outputs:
        expect_tensor(op.outputs["mask"], "bits", y.shape)


def float32(x: Any) -> np.ndarray:
    return np.asarray(x, dtype=np.float32)
