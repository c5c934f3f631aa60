"""A model that does not fit is refused with the bytes, the op and the tensors that are to blame."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from networks import images, residual_network

from tinytrain_lite import measure
from tinytrain_lite.board import Region, load_board
from tinytrain_lite.compiler import compile_program
from tinytrain_lite.errors import DoesNotFitError
from tinytrain_lite.fit import check_fits
from tinytrain_lite.memory import static_bytes
from tinytrain_lite.sparse.scheme import preset
from tinytrain_lite.train.datasets import Dataset, Split


def shrunk(**bytes_of: int):
    """A board whose memories are smaller."""
    board = load_board()
    memories = {n: dataclasses.replace(m, bytes=bytes_of.get(n, m.bytes)) for n, m in board.memories.items()}
    return dataclasses.replace(board, memories=memories)


def program(size: int = 24):
    graph = residual_network(1, size)
    return compile_program(graph, preset("full"), *images(graph, 2))


def test_sram_overflow_is_counted_to_the_byte() -> None:
    p = program()
    needed = p.arena_bytes + static_bytes(p.train) + load_board().stack_bytes
    board = shrunk()
    sram2 = Region("sram2", board.memories["sram2"].base, 0)
    # The other two banks cannot shrink without a gap between them: grow the stack until just 1 byte is missing.
    board = dataclasses.replace(board, memories={**board.memories, "sram2": sram2})
    spare = board.ram.bytes - needed
    fits = dataclasses.replace(board, stack_bytes=board.stack_bytes + spare)
    check_fits(p, fits)
    with pytest.raises(DoesNotFitError, match=r"needs 1 bytes more SRAM than .*Most is alive at op '\w+(\.\w+)*' \("):
        check_fits(p, dataclasses.replace(fits, stack_bytes=fits.stack_bytes + 1))


def test_flash_overflow_names_the_largest_constants() -> None:
    board = shrunk(flash=load_board().memories["flash"].bytes - load_board().program.bytes + 512)
    with pytest.raises(DoesNotFitError, match=r"bytes more flash than the 512 for a program on .*Largest constants: b"):
        check_fits(program(), board)


def test_a_large_input_is_refused_with_the_tensors_alive_at_the_peak() -> None:
    blame = r"residual/full needs [\d,]+ bytes more SRAM .*alive at op 'b1.expand' .*: b1.expand.g .*, image 270,000, "
    with pytest.raises(DoesNotFitError, match=blame):
        check_fits(program(300), load_board())


def test_measuring_refuses_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "generate", lambda *_: pytest.fail("code was generated for a model that cannot fit"))
    nothing = Dataset("none", np.zeros((0, 300, 300, 3), np.uint8), np.zeros(0, np.int64), ("a", "b"))
    with pytest.raises(DoesNotFitError, match="bytes more SRAM"):
        measure.measure(program(300), Split(nothing, nothing, nothing), rate=0.01, steps=1)
