"""The paper's three networks at 128x128, 10 classes, its smallest sparse scheme: two steps on the emulated chip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tinytrain_lite.board import load_board
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import compile_program
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.memory import align, static_bytes
from tinytrain_lite.sparse.presets import published
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

MODELS = Path(__file__).parents[3] / "shared" / "models"
NAMES = ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"the paper's checkpoints are not at {MODELS}")
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_on_the_emulated_chip_equal_the_host(tmp_path: Path, name: str) -> None:
    graph = import_checkpoint(MODELS / f"{name}.pkl", num_classes=10)
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (2, 128, 128, 3)).astype(np.int8)
    y = np.array([1, 7])
    program = compile_program(graph, published(name, "49kb"), x, y)
    generate(program, tmp_path)
    with HostTarget(build_host_library(tmp_path)) as host, UnicornTarget(build_firmware(tmp_path)) as board:
        before = board.read_params()
        np.testing.assert_array_equal(host.train_many(x, y).loss, board.train_many(x, y).loss)
        after = board.read_params()
        assert any((before[k] != after[k]).any() for k in after if ".w" in k and "head" not in k)
        for key, value in host.read_params().items():
            np.testing.assert_array_equal(after[key], value, err_msg=key)
        report = board.memory_report()
    chip = load_board()
    assert report.arena == align(program.arena_bytes)
    assert 0 < report.data + report.bss - static_bytes(program.train) < 1024  # the runtime's own variables
    assert report.high_water <= chip.ram.bytes == 320 * 1024
    assert report.flash <= chip.memories["flash"].bytes == 1024 * 1024
