"""Row views: `slice_rows` and `concat_rows` move no bytes and have no kernel.

Activations are (H, W, C) in row-major order, so some rows of a tensor are a contiguous part of it. A tensor with
`rows_of` set *is* those bytes. The patch pass uses the two ops to say which band of rows an op reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops.base import OpDefinition, expect, expect_tensor

if TYPE_CHECKING:
    from tinytrain_lite.reference import Machine


def check_view(part: Tensor, whole: Tensor) -> None:
    expect(part.rows_of is whole, f"'{part.name}' is not a view of '{whole.name}'")
    expect_tensor(part, whole.dtype, (part.shape[0], *whole.shape[1:]))
    expect(
        0 <= part.first_row < part.first_row + part.shape[0] <= whole.shape[0],
        f"rows {part.first_row}..{part.first_row + part.shape[0]} are not rows of '{whole.name}'",
    )
    expect(part.scale == whole.scale and part.zero_point == whole.zero_point, "a view keeps its scale and zero point")


class SliceRows(OpDefinition):
    kind = "slice_rows"
    has_kernel = False

    def check(self, op: Op) -> None:
        check_view(op.outputs["y"], op.inputs["x"])

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        y = op.outputs["y"]
        return {"y": v["x"][y.first_row : y.first_row + y.shape[0]]}

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        return [("y", "x")]


class ConcatRows(OpDefinition):
    """Parts `part0`, `part1`, ... from the first row to the last."""

    kind = "concat_rows"
    has_kernel = False

    def check(self, op: Op) -> None:
        whole, row = op.outputs["y"], 0
        for part in op.inputs.values():
            check_view(part, whole)
            expect(part.first_row == row, f"'{part.name}' begins at row {part.first_row}, expected {row}")
            row += part.shape[0]
        expect(row == whole.shape[0], f"the parts end at row {row} of {whole.shape[0]}")

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        return {"y": np.concatenate([v[role] for role in op.inputs])}

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        return [("y", role) for role in op.inputs]
