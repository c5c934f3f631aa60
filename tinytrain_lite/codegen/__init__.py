"""Program -> readable C: `model.c` (one function per op, in schedule order) and `model_data.c` (the constants)."""

from tinytrain_lite.codegen.generate import generate

__all__ = ["generate"]
