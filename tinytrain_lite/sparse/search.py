"""Search for the update scheme with the largest score whose price fits a budget.

    maximise  gain of the last k biases + sum of gains of the weights    subject to    peak SRAM <= budget

Paper section 3.2. Three ways: `random`, `evolutionary` (what the paper uses) and `exact`. All are given the same
number of evaluations: schemes compiled and priced by the memory planner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tinytrain_lite.errors import DoesNotFitError, UnsupportedError
from tinytrain_lite.sparse.price import Pricer
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.sparse.space import Candidate, Space

__all__ = ["METHODS", "Result", "run_search"]

METHODS = ("random", "evolutionary", "exact")

POPULATION = 64
PARENTS = 16  # the best of a generation; the next one descends from them
MUTATION = 0.1  # chance of each gene to be drawn anew
STALE = 20_000  # candidates drawn in a row without one that is new: the space is used up


@dataclass(frozen=True)
class Result:
    """curve: (evaluations, best score so far) at every improvement and at the end.

    bound: no candidate that fits can score more (`exact` only).  seconds: wall time.
    """

    method: str
    candidate: Candidate
    scheme: UpdateScheme
    score: float
    bytes: int
    evaluations: int
    seconds: float
    curve: list[tuple[int, float]]
    bound: float | None = None


@dataclass
class Book:
    """Prices candidates against the budget and remembers the best that fits."""

    space: Space
    pricer: Pricer
    budget: int
    limit: int  # evaluations
    progress: Callable[[int], None] | None = None
    best: Candidate | None = None
    bytes: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    evaluations: int = 0
    _seen: dict[Candidate, bool] = field(default_factory=dict)

    @property
    def spent(self) -> bool:
        return self.evaluations >= self.limit

    @property
    def score(self) -> float:
        return float("-inf") if self.best is None else self.space.score(self.best)

    def knows(self, candidate: Candidate) -> bool:
        return candidate in self._seen

    def fits(self, candidate: Candidate) -> bool:
        """Price a candidate; counted once. Of equal scores the cheaper one is better."""
        if candidate not in self._seen:
            price = self.pricer.price(self.space.scheme(candidate, "candidate"))
            self.evaluations += 1
            self._seen[candidate] = price <= self.budget
            if self._seen[candidate]:
                score, best = self.space.score(candidate), self.score
                if score > best or (score == best and price < self.bytes):
                    self.best, self.bytes = candidate, price
                    if score > best:
                        self.curve.append((self.evaluations, score))
            if self.progress:
                self.progress(self.evaluations)
        return self._seen[candidate]


def run_search(
    method: str, space: Space, pricer: Pricer, budget: int, evaluations: int = 2000, seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:  # fmt: skip
    """budget: bytes of SRAM.  evaluations: schemes priced at most.  progress: called with those priced so far.

    Raises DoesNotFitError if nothing fits (says what the cheapest scheme needs), UnsupportedError for a method
    that does not exist.
    """
    if method not in METHODS:
        raise UnsupportedError(f"no search method '{method}'; choose one of {', '.join(METHODS)}")
    start = time.perf_counter()
    book = Book(space, pricer, budget, evaluations, progress)
    cheapest = Candidate(min(space.biases))
    if not book.fits(cheapest):
        needs = pricer.price(space.scheme(cheapest, "cheapest"))
        raise DoesNotFitError(
            f"no scheme of '{space.graph.name}' fits {budget:,} bytes: the cheapest, the last {cheapest.biases} "
            f"bias(es) and the head, needs {needs:,}; give it {needs - budget:,} bytes more, or smaller images"
        )
    bound = None
    if method == "exact":
        try:
            from tinytrain_lite.sparse.exact import branch_and_cut  # needs OR-tools, which the other methods do not
        except ImportError:
            raise UnsupportedError("exact search needs OR-tools; `pip install 'tinytrain-lite[search]'`") from None
        bound = branch_and_cut(book)
    elif method == "random":
        random_search(book, np.random.default_rng(seed))
    else:
        evolve(book, np.random.default_rng(seed))
    assert book.best is not None
    curve = [*book.curve, (book.evaluations, book.score)]
    scheme = space.scheme(book.best, f"{method}-{budget}")
    return Result(method, book.best, scheme, book.score, book.bytes, book.evaluations, time.perf_counter() - start,
                  curve, bound)  # fmt: skip


def random_candidate(space: Space, rng: np.random.Generator) -> Candidate:
    """Any number of biases; each weight learns with a chance that is itself drawn, so that few and many both occur."""
    biases = int(rng.choice(list(space.biases)))
    density = rng.random()
    return space.candidate(biases, {n: _gene(space, n, density, rng) for n in space.reachable(biases)})


def _gene(space: Space, layer: str, density: float, rng: np.random.Generator) -> float:
    return float(rng.choice(list(space.weights[layer]))) if rng.random() < density else 0.0


def random_search(book: Book, rng: np.random.Generator) -> None:
    """Price random candidates until the evaluations are spent, or the space is."""
    stale = 0
    while not book.spent and stale < STALE:
        candidate = random_candidate(book.space, rng)
        stale = stale + 1 if book.knows(candidate) else 0
        book.fits(candidate)


def evolve(book: Book, rng: np.random.Generator) -> None:
    """Evolutionary search: a population that fits; its best descend by crossover and mutation; what does not fit dies.

    Half of the children are crossed from two parents, half are mutants of one.
    """
    space = book.space
    population = [book.best] if book.best is not None else []
    stale = 0
    while not book.spent and stale < STALE:
        parents = sorted(dict.fromkeys(population), key=space.score, reverse=True)[:PARENTS]  # a set has no fixed order
        founding = len(population) < POPULATION // 4 and book.evaluations < book.limit // 4
        population = list(population) if founding else list(parents)
        while len(population) < POPULATION and not book.spent and stale < STALE:
            if founding:
                child = random_candidate(space, rng)
            elif rng.random() < 0.5:
                child = _cross(space, parents, rng)
            else:
                child = _mutate(space, parents[rng.integers(len(parents))], rng)
            known = book.knows(child)
            stale = stale + 1 if known else 0
            if not known and book.fits(child):
                population.append(child)
            if founding and book.evaluations >= book.limit // 4:
                break


def _cross(space: Space, parents: list[Candidate], rng: np.random.Generator) -> Candidate:
    """Each gene from one of two parents."""
    a, b = (parents[i] for i in rng.integers(len(parents), size=2))
    genes_a, genes_b = dict(a.weights), dict(b.weights)
    mixed = {n: (genes_a if rng.random() < 0.5 else genes_b).get(n, 0.0) for n in space.weights}
    return space.candidate(a.biases if rng.random() < 0.5 else b.biases, mixed)


def _mutate(space: Space, parent: Candidate, rng: np.random.Generator) -> Candidate:
    """Each gene, with chance MUTATION, is drawn anew; at least one is."""
    genes = dict(parent.weights)
    biases = int(rng.choice(list(space.biases))) if rng.random() < MUTATION else parent.biases
    layers = space.reachable(biases)
    drawn = [n for n in layers if rng.random() < MUTATION] or ([layers[rng.integers(len(layers))]] if layers else [])
    return space.candidate(biases, genes | {n: _gene(space, n, 0.5, rng) for n in drawn})
