"""Find an update scheme by what a user types: a YAML file, a scheme known for the model, or a general preset."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.sparse.scheme import UpdateScheme, preset

GENERAL = ("full", "last", "bias", "last-K")


@functools.cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    return yaml.safe_load((resources.files("tinytrain_lite.sparse") / "presets.yaml").read_text("utf-8"))


def schemes_of(model: str) -> tuple[str, ...]:
    """Names of the schemes that `presets.yaml` lists for a model; none for a model it does not know."""
    return tuple(_table().get(model, {}))


def published(model: str, name: str) -> UpdateScheme:
    """The scheme that `presets.yaml` lists for a model, e.g. ("mcunet-5fps", "49kb").

    Raises UnsupportedError naming the schemes that the model has.
    """
    known = _table().get(model, {})
    if name not in known:
        raise UnsupportedError(
            f"no update scheme '{name}' for {model}; choose {', '.join((*known, *GENERAL))}, or name a YAML file"
        )
    return UpdateScheme(name, known[name]["biases"], {**known[name]["weights"], -1: 1.0})


def find_scheme(model: str, name: str) -> UpdateScheme:
    """A YAML file, a scheme listed for the model, or a general preset. Raises UnsupportedError for anything else."""
    if name.endswith((".yaml", ".yml")):
        return UpdateScheme.from_yaml(Path(name))
    if name in ("full", "last", "bias") or name.startswith("last-"):
        return preset(name)
    return published(model, name)
