"""The schemes a search may choose from, and the score of each: the sum of the gains that were measured."""

from __future__ import annotations

from dataclasses import dataclass

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph
from tinytrain_lite.sparse.analysis import HEAD, RATIOS, Analysis
from tinytrain_lite.sparse.scheme import UpdateScheme

__all__ = ["Candidate", "Space"]


@dataclass(frozen=True)
class Candidate:
    """The last `biases` biases learn, and (layer, ratio) of weights, in forward order; the head always."""

    biases: int
    weights: tuple[tuple[str, float], ...] = ()


class Space:
    """Candidates over what an analysis has measured.

    biases: the counts to choose from -> gain.  weights: layer -> {ratio: gain}, forward order; shares that add
    nothing are left out, as no optimum needs them. A weight learns only where its bias does: so it was measured.
    """

    def __init__(self, graph: Graph, analysis: Analysis) -> None:
        """Raises UnsupportedError if the analysis is of another network, or holds nothing to choose from."""
        self.graph = graph
        self.layers = [op.name for op in graph if "w" in op.inputs]
        if analysis.layers != self.layers:
            raise UnsupportedError(
                f"the analysis is of '{analysis.model}' with {len(analysis.layers)} layers, not of '{graph.name}' with "
                f"{len(self.layers)}; run `tinytrain analyze` for this model"
            )
        counts = range(1, len(self.layers) + 1)
        self.biases = {k: gain for k in counts if (gain := analysis.bias_gain(k)) is not None}
        if not self.biases:
            raise UnsupportedError("the analysis has no sound run of the head alone; run `tinytrain analyze` again")
        self.weights: dict[str, dict[float, float]] = {}
        for layer in self.layers[:-1]:
            gains = {ratio: gain for ratio in RATIOS if (gain := analysis.weight_gain(layer, ratio) or 0) > 0}
            if gains:
                self.weights[layer] = gains

    def reachable(self, biases: int) -> list[str]:
        """The layers whose weights may learn together with the last `biases` biases."""
        return [layer for layer in self.layers[len(self.layers) - biases :] if layer in self.weights]

    def candidate(self, biases: int, weights: dict[str, float]) -> Candidate:
        """Ratio 0 means not at all; weights in front of the last bias are dropped."""
        return Candidate(biases, tuple((n, r) for n in self.reachable(biases) if (r := weights.get(n, 0.0)) > 0))

    def score(self, candidate: Candidate) -> float:
        """Sum of the gains, as an accuracy (0.01 is a percentage point)."""
        return self.biases[candidate.biases] + sum(self.weights[layer][ratio] for layer, ratio in candidate.weights)

    def scheme(self, candidate: Candidate, name: str) -> UpdateScheme:
        weights: dict[str | int, float] = dict(candidate.weights)
        return UpdateScheme(name, candidate.biases, weights | HEAD)
