"""The integer contract: NumPy reference = host C = the ELF in Unicorn, byte for byte, after 50 training steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import images, residual_network

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import Program, compile_program
from tinytrain_lite.memory import align, static_bytes
from tinytrain_lite.reference import Machine
from tinytrain_lite.sparse.scheme import UpdateScheme, preset
from tinytrain_lite.target.base import Target
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

STEPS = 50
LEARNING_RATE = 0.02
SPARSE = UpdateScheme(
    "sparse", 9, {"b3.expand": 0.5, "b3.depthwise": 0.25, "b2.project": 0.25, "b2.expand": 1.0, "head": 1.0}
)
SCHEMES = [preset("full"), preset("last"), preset("bias"), preset("last-3"), SPARSE]


def build(tmp_path: Path, scheme: UpdateScheme, rounding: str, seed: int = 5) -> tuple[Program, Path]:
    graph = residual_network(seed)
    program = compile_program(graph, scheme, *images(graph, 4, seed), UpdateRule(rounding))
    generate(program, tmp_path)
    return program, tmp_path


def state(target: Target) -> dict[str, bytes]:
    return {name: data.tobytes() for name, data in target.read_params().items()}


@pytest.mark.parametrize("rounding", ["fraction8", "stochastic"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_fifty_steps_give_the_same_bytes_everywhere(tmp_path: Path, scheme: UpdateScheme, rounding: str) -> None:
    program, directory = build(tmp_path, scheme, rounding)
    x, y = images(program.infer, STEPS, seed=9)
    reference = Machine(program.train, LEARNING_RATE)
    losses = [reference.train(image, int(label))[0] for image, label in zip(x, y, strict=True)]
    expected = {name: p.tobytes() for name, p in reference.params.items()}
    reference_infer = Machine(program.infer)
    reference_infer.params = {name: reference.params[name] for name in reference_infer.params}
    logits = reference_infer.infer(x[0])
    first = {name: p.tobytes() for name, p in Machine(program.train).params.items()}
    assert expected != first, "nothing was learned: the comparison would be empty"
    with HostTarget(build_host_library(directory)) as host, UnicornTarget(build_firmware(directory)) as board:
        for target in (host, board):
            assert state(target) == first
            target.set_learning_rate(LEARNING_RATE)
            log = target.train_many(x, y)
            np.testing.assert_array_equal(log.loss, np.array(losses, np.float32))
            assert state(target) == expected
            np.testing.assert_array_equal(target.infer(x[0]).logits, logits)
            target.reset()
            assert state(target) == first


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_the_other_roundings_agree_too(tmp_path: Path, rounding: str) -> None:
    program, directory = build(tmp_path, preset("full"), rounding)
    x, y = images(program.infer, STEPS, seed=9)
    reference = Machine(program.train, LEARNING_RATE)
    for image, label in zip(x, y, strict=True):
        reference.train(image, int(label))
    with HostTarget(build_host_library(directory)) as host:
        host.set_learning_rate(LEARNING_RATE)
        host.train_many(x, y)
        assert state(host) == {name: p.tobytes() for name, p in reference.params.items()}


def test_plan_and_device_agree(tmp_path: Path) -> None:
    """Arena: predicted = linked = touched by the running firmware. Static: predicted + the runtime's own = linked.

    The runtime is the same code whatever the model, so its share must be the same number in every build.
    """
    runtime = set()
    for i, scheme in enumerate(SCHEMES):
        program, directory = build(tmp_path / str(i), scheme, "fraction8")
        x, y = images(program.infer, 3)
        with UnicornTarget(build_firmware(directory)) as board:
            board.paint_arena()
            board.train_many(x, y)
            board.infer(x[0])
            report = board.memory_report()
        assert align(report.arena_used) == report.arena == program.arena_bytes
        runtime.add(report.data + report.bss - static_bytes(program.train))
        assert report.high_water == report.data + report.bss + report.arena + report.stack_used
    assert len(runtime) == 1 and 0 < runtime.pop() < 1024


def test_generated_code_is_deterministic_and_readable(tmp_path: Path) -> None:
    build(tmp_path / "one", SPARSE, "fraction8")
    build(tmp_path / "two", SPARSE, "fraction8")
    for name in ("model.c", "model_data.c", "model_data.h"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "model.c").read_text()
    assert "depthwise_conv2d(x=%b1.expand.y" in text, "each call shows its shapes and scales as the IR prints them"
    assert " MACs" in text and "arena: " in text
