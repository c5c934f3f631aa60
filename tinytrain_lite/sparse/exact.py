"""Exact search: a knapsack solved to optimality, and the memory planner asked about every answer.

For each number of biases k, the linear lower bound on SRAM (bounds.py) makes the choice of weights a 0-1 knapsack
with one row an op, which OR-tools CP-SAT solves. Its optimum is never below the true one, as no scheme that fits is
cut off. Best first over k: the most promising answer is priced by the planner; if it fits, nothing can beat it. If
not, that one answer is forbidden (a no-good cut) and the knapsack solved again.

So the score returned is that of a scheme that the planner accepts, and the bound is true for every scheme of the
space (given the one assumption of bounds.py). They are equal if the search ends before its evaluations do; else the
gap is what is not known.
"""

from __future__ import annotations

import heapq

from ortools.sat.python import cp_model

from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.sparse.bounds import Choice, lower_bound
from tinytrain_lite.sparse.search import Book
from tinytrain_lite.sparse.space import Candidate, Space

__all__ = ["branch_and_cut"]

SCALE = 1_000_000  # CP-SAT counts in integers: gains in millionths
SECONDS = 60.0  # for one knapsack; its bound holds if it is not solved by then


class _Knapsack:
    """Which weights learn, with the last `biases` biases: most gain within the linear bound on SRAM."""

    def __init__(self, space: Space, biases: int, budget: int) -> None:
        self.space, self.biases, self.budget = space, biases, budget
        weights = {layer: list(space.weights[layer]) for layer in space.reachable(biases)}
        self.bound = lower_bound(space.graph, biases, weights)
        self.forbidden: list[Candidate] = []

    def solve(self, slack: int = 0) -> tuple[float, Candidate | None]:
        """(score that nothing exceeds, best candidate) within budget - slack; None if nothing is left."""
        model = cp_model.CpModel()
        space = self.space
        layers = space.reachable(self.biases)
        x: dict[Choice, cp_model.IntVar] = {
            (layer, ratio): model.new_bool_var(f"{layer} {ratio}") for layer in layers for ratio in space.weights[layer]
        }
        for layer in layers:
            model.add_at_most_one(x[layer, ratio] for ratio in space.weights[layer])
        room = self.budget - slack - self.bound.constant
        rows = {(tuple(row.costs.items()), row.constant): row for row in self.bound.rows}
        for row in rows.values():
            cost = sum((self.bound.static[c] + row.costs.get(c, 0)) * var for c, var in x.items())
            model.add(cost <= room - row.constant)
        for candidate in self.forbidden:
            chosen = set(candidate.weights)
            model.add(sum(1 - v if c in chosen else v for c, v in x.items()) >= 1)
        model.maximize(sum(round(SCALE * space.weights[layer][ratio]) * var for (layer, ratio), var in x.items()))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = SECONDS
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return float("-inf"), None
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            raise TinyTrainError(
                f"exact search: no answer for {self.biases} biases in {SECONDS:.0f} s; raise the budget"
            )
        candidate = space.candidate(self.biases, {layer: r for (layer, r), v in x.items() if solver.boolean_value(v)})
        rounding = len(layers) / SCALE
        return space.biases[self.biases] + solver.best_objective_bound / SCALE + rounding, candidate


def branch_and_cut(book: Book) -> float:
    """Search `book.space` until nothing can beat `book.best`, or the evaluations are spent; returns the bound."""
    space = book.space
    heap: list[tuple[float, int, Candidate | None]] = []
    for k, gain in space.biases.items():
        every = sum(max(space.weights[layer].values()) for layer in space.reachable(k))
        heapq.heappush(heap, (-gain - every, k, None))
    knapsacks: dict[int, _Knapsack] = {}
    while heap and -heap[0][0] > book.score + len(space.weights) / SCALE and not book.spent:
        _, k, candidate = heapq.heappop(heap)
        if candidate is None:
            knapsacks[k] = _Knapsack(space, k, book.budget)
        elif _fits(book, knapsacks[k], candidate):
            continue  # the book has it, and it was the best of its k
        else:
            knapsacks[k].forbidden.append(candidate)
            _repair(book, knapsacks[k], candidate)
        bound, answer = knapsacks[k].solve()
        if answer is not None:
            heapq.heappush(heap, (-bound, k, answer))
    return max(book.score, -heap[0][0] if heap else book.score)


def _fits(book: Book, knapsack: _Knapsack, candidate: Candidate) -> bool:
    price, least = book.pricer.price(book.space.scheme(candidate, "candidate")), knapsack.bound.at(candidate.weights)
    if price < least:
        raise TinyTrainError(
            f"exact search: the planner needs {price:,} bytes for {candidate}, the bound says at least {least:,}; "
            "so nothing can be proved here. Use --method evolutionary, and report this"
        )
    return book.fits(candidate)


def _repair(book: Book, knapsack: _Knapsack, rejected: Candidate) -> None:
    """Something that fits, if not the best: leave as many bytes free as the planner asked too many."""
    excess = book.pricer.price(book.space.scheme(rejected, "rejected")) - book.budget
    bound, candidate = knapsack.solve(slack=excess)
    if candidate is not None and bound > book.score and not book.spent:
        _fits(book, knapsack, candidate)
