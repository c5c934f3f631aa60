"""Print a program into a directory: model.c, model_data.c, model_data.h. Same program, same bytes: no time stamps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from tinytrain_lite.codegen.emit import C_TYPE, Emitter, c_float, identifier
from tinytrain_lite.compiler import Program
from tinytrain_lite.errors import GraphError
from tinytrain_lite.files import write_text
from tinytrain_lite.graph import Tensor
from tinytrain_lite.reference import logits_name

LINE = 110


@dataclass(frozen=True)
class Array:
    """One C array. `initial` is None for zeros and for what an op writes."""

    tensor: Tensor
    name: str
    c_type: str
    count: int
    initial: np.ndarray | None

    @property
    def values(self) -> str:
        """The contents as C literals, wrapped."""
        assert self.initial is not None
        flat = self.initial.ravel()
        words = [c_float(v) for v in flat] if flat.dtype == np.float32 else [str(v) for v in flat]
        lines, line = [], ""
        for word in words:
            if len(line) + len(word) + 2 > LINE:
                lines.append(line.rstrip())
                line = ""
            line += word + ", "
        return "\n  ".join([*lines, line.rstrip()])


def _array(t: Tensor) -> Array:
    nonzero = t.data is not None and bool(np.any(t.data))
    initial = t.data if t.role == "const" or nonzero else None
    return Array(t, identifier(t.name), C_TYPE[t.dtype], t.elements, initial)


def generate(program: Program, directory: Path) -> None:
    """Write the C files. Raises GraphError if two names become the same C identifier, or an op has no kernel."""
    train, infer = program.train, program.infer
    emitters = {
        "train": Emitter(train, program.train_plan, "train"),
        "infer": Emitter(infer, program.infer_plan, "infer"),
    }
    tensors = [t for t in train.tensors.values() if t.aliases is None]
    used = {t.name for graph in (train, infer) for op in graph for t in op.inputs.values()}
    arrays = {
        "constants": [_array(t) for t in tensors if t.role == "const" and t.name in used],
        "parameters": [_array(t) for t in tensors if t.role == "param"],
        "outputs": [_array(t) for t in tensors if t.role == "output"],
    }
    states = [t for t in train.tensors.values() if t.dtype == "dfp16"]
    _check_names([a.name for group in arrays.values() for a in group], program.name)
    h, w, c = train.image.shape
    context = {
        **arrays,
        "program": program,
        "states": states,
        "emitters": emitters,
        "identifier": identifier,
        "c_float": c_float,
        "height": h, "width": w, "channels": c,
        "classes": train.tensors[logits_name(train)].elements,
        "logits": identifier(logits_name(train)),
        "digest": train.digest(),
    }  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinytrain_lite.codegen"), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    texts = {
        name: environment.get_template(name + ".j2").render(context)
        for name in ("model.c", "model_data.c", "model_data.h")
    }
    for name, text in texts.items():
        write_text(directory / name, text)


def _check_names(names: list[str], program: str) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise GraphError(f"{program}: several tensors become the C name '{twice[0]}'; rename a layer")
