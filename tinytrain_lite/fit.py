"""Does a program fit a board? Asked of the plan, before any compiler runs, so that the answer can name tensors."""

from __future__ import annotations

from tinytrain_lite.board import Board
from tinytrain_lite.compiler import Program
from tinytrain_lite.errors import DoesNotFitError
from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.memory import Plan, static_bytes

SHOWN = 5  # tensors a message names


def flash_constants(graph: Graph) -> list[Tensor]:
    """Constants, and the parameters whose initial values are kept in flash."""
    return [t for t in graph.tensors.values() if t.data is not None and t.aliases is None]


def check_fits(program: Program, board: Board) -> None:
    """Raises DoesNotFitError: how many bytes too many, the largest tensors, and what would help.

    Counts the arena, the model's static SRAM and the stack; the firmware's own few hundred bytes of variables and
    its code are the linker's to check.
    """
    static = static_bytes(program.train)
    over = program.arena_bytes + static + board.stack_bytes - board.ram.bytes
    if over > 0:
        plan, graph = max(
            ((program.train_plan, program.train), (program.infer_plan, program.infer)),
            key=lambda pair: pair[0].arena_bytes,
        )
        worst = max(range(len(plan.live)), key=plan.live.__getitem__)
        op = graph.ops[worst]
        raise DoesNotFitError(
            f"{program.name} needs {over:,} bytes more SRAM than {board.name} has: arena {program.arena_bytes:,} + "
            f"parameters and state {static:,} + stack {board.stack_bytes:,} > {board.ram.bytes:,}. Most is alive at op "
            f"'{op.name}' ({op.kind}): {_alive(plan, worst)}. Largest parameters: {_largest(graph.parameters)}. "
            f"Train fewer layers or smaller slices of them, or take a smaller input"
        )
    flash = board.program.bytes
    constants = flash_constants(program.train)
    over = sum(t.nbytes for t in constants) - flash
    if over > 0:
        raise DoesNotFitError(
            f"{program.name} needs {over:,} bytes more flash than the {flash:,} for a program on {board.name}, before "
            f"any code. Largest constants: {_largest(constants)}. Take a smaller network"
        )


def _alive(plan: Plan, op: int) -> str:
    alive = [b for b in plan.buffers if b.first <= op <= b.last]
    alive.sort(key=lambda b: -b.size)
    return ", ".join(f"{b.name} {b.size:,}" for b in alive[:SHOWN])


def _largest(tensors: list[Tensor]) -> str:
    return ", ".join(f"{t.name} {t.nbytes:,}" for t in sorted(tensors, key=lambda t: -t.nbytes)[:SHOWN])
