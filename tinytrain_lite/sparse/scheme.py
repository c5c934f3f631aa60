"""An update scheme: how many last biases learn, which weights learn, and what fraction of their input channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tinytrain_lite.errors import UnsupportedError


@dataclass(frozen=True)
class UpdateScheme:
    """
    biases: how many of the last layers learn their bias ("all" for every layer).
    weights: layer name -> fraction in (0, 1] of its input channels that learns. A layer may be named, or counted
        (0 is the first layer, -1 the classifier head); "all" trains every weight whole.
    """

    name: str
    biases: int | str = 1
    weights: dict[str | int, float] | str = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UnsupportedError naming the field that is wrong, what it holds and what it should hold."""

        def refuse(problem: str) -> None:
            raise UnsupportedError(f"scheme '{self.name}': {problem}")

        if self.biases != "all" and not (_is_whole(self.biases) and int(self.biases) >= 0):
            refuse(f"biases is {self.biases!r}; expected how many last layers learn their bias (0 or more), or 'all'")
        if self.weights == "all":
            return
        if not isinstance(self.weights, dict):
            refuse(f"weights is {self.weights!r}; expected 'all', or layer: fraction")
            return
        for layer, ratio in self.weights.items():
            if not (isinstance(layer, str) or _is_whole(layer)):
                refuse(f"{layer!r} is no layer; expected a name, or a number counted from the first (0) or last (-1)")
            if not (_is_whole(ratio) or isinstance(ratio, float)) or not 0 < ratio <= 1:
                refuse(f"layer {layer!r} learns a fraction {ratio!r}; expected a number above 0 and at most 1")

    # ---- the layers of a concrete network ---------------------------------------------------
    def resolve_biases(self, layers: list[str]) -> list[str]:
        """Names of the layers whose bias learns. Raises UnsupportedError if there are fewer layers."""
        count = len(layers) if self.biases == "all" else int(self.biases)
        if not 0 <= count <= len(layers):
            raise UnsupportedError(f"scheme '{self.name}': {count} biases learn, the network has {len(layers)} layers")
        return layers[len(layers) - count :]

    def resolve_weights(self, layers: list[str]) -> dict[str, float]:
        """Layer name -> fraction. Raises UnsupportedError for a layer that is unknown or named twice."""
        if isinstance(self.weights, str):
            return dict.fromkeys(layers, 1.0)
        resolved: dict[str, float] = {}
        for key, ratio in self.weights.items():
            in_range = isinstance(key, int) and -len(layers) <= key < len(layers)
            name = layers[key] if isinstance(key, int) and in_range else key
            if name not in layers:
                raise UnsupportedError(f"scheme '{self.name}': no layer '{key}'; the network has {', '.join(layers)}")
            if name in resolved:
                raise UnsupportedError(f"scheme '{self.name}': layer '{name}' is named twice; keep one fraction")
            resolved[str(name)] = float(ratio)
        return resolved

    # ---- YAML ---------------------------------------------------------------------------------
    def to_yaml(self) -> str:
        weights = self.weights if isinstance(self.weights, str) else dict(self.weights)
        return yaml.safe_dump({"name": self.name, "biases": self.biases, "weights": weights}, sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> UpdateScheme:
        """Raises UnsupportedError naming the file and the field that is wrong."""
        try:
            fields = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UnsupportedError(f"update scheme {path}: {error}") from None
        if not isinstance(fields, dict):
            raise UnsupportedError(f"update scheme {path}: expected the fields name, biases and weights")
        if unknown := [str(key) for key in fields if key not in ("name", "biases", "weights")]:
            raise UnsupportedError(
                f"update scheme {path}: unknown field {', '.join(unknown)}; a scheme has name, biases and weights"
            )
        try:
            return cls(str(fields.get("name", path.stem)), fields.get("biases", 1), fields.get("weights") or {})
        except UnsupportedError as error:
            raise UnsupportedError(f"update scheme {path}: {error}") from None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def preset(name: str) -> UpdateScheme:
    """`full`, `last` (the head), `bias` (every bias and the head), `last-K` (the last K layers whole).

    Raises UnsupportedError for any other name.
    """
    if name == "full":
        return UpdateScheme("full", "all", "all")
    if name == "last":
        return UpdateScheme("last", 1, {-1: 1.0})
    if name == "bias":
        return UpdateScheme("bias", "all", {-1: 1.0})
    if name.startswith("last-") and name[5:].isdigit() and int(name[5:]) > 0:
        k = int(name[5:])
        return UpdateScheme(name, k, {-i: 1.0 for i in range(1, k + 1)})
    raise UnsupportedError(f"no preset update scheme '{name}'; choose full, last, bias, last-K, or name a YAML file")
