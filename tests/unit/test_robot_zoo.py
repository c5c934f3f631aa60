"""Every deliberately broken firmware makes exactly the right Robot check fail, in words that lead to the defect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("robot", reason="Robot Framework is not installed: pip install robotframework")

from tinytrain_lite.target.choose import TargetUnavailable, check_target

ZOO = Path(__file__).parents[1] / "robot" / "zoo"
ANSWERS, RUNS, LEARNS, FITS, FAST = (
    "The Board Answers", "Training Runs To Its End", "It Learns", "It Fits", "A Step Is Fast",
)  # fmt: skip
DEFECTS = {
    "ZOO_STACK_OVERFLOW": (
        RUNS,
        r"after 10 training steps: stack overflow \(4096 bytes are reserved\).*(recurse|sp=0x20000000)",
    ),
    "ZOO_WILD_POINTER": (RUNS, r"after 10 training steps: write to read-only memory 0x00000004 in store_through"),
    "ZOO_WRONG_GRADIENT_SIGN": (LEARNS, r"accuracy is \d.* not at least 90%; the loss rose .*against the gradient\?"),
    "ZOO_SRAM_BUDGET_EXCEEDED": (FITS, r"2\d\d,\d{3} bytes, \d+,\d{3} too many for 'below 16KB': .*arena 204,800"),
    "ZOO_SLOW_KERNEL": (FAST, r"^\d{3},\d{3} instructions a training step, \d+\.\d times the 20K allowed"),
    "ZOO_SILENT_UART": (ANSWERS, r"does not answer: .* Is the USART on \(CR1: UE, RE, TE\)"),
}
UNLINKABLE = "ZOO_MORE_SRAM_THAN_THE_CHIP"  # never runs; faults.robot sees to it
# What cannot be known of a device that has stopped is skipped, not failed and not passed.
SKIPPED = {RUNS: [LEARNS, FITS, FAST], ANSWERS: [RUNS, LEARNS, FITS, FAST]}


@pytest.fixture(params=["unicorn", "renode"])
def target(request: pytest.FixtureRequest) -> str:
    try:
        check_target(request.param, None)
    except TargetUnavailable as error:
        pytest.skip(str(error))
    return str(request.param)


def run(output: Path, *options: str) -> dict[str, tuple[str, str]]:
    """Run the suite; {test: (status, message)} as output.xml has them."""
    import robot
    from robot.result import ExecutionResult

    robot.run_cli(["--outputdir", str(output), "--loglevel", "INFO", *options, str(ZOO / "lab.robot")], exit=False)
    result = ExecutionResult(output / "output.xml")
    return {test.name: (test.status, test.message) for test in result.suite.tests}


def test_the_healthy_firmware_passes_and_the_log_has_pictures(tmp_path: Path, target: str) -> None:
    assert {status for status, _ in run(tmp_path, "--variable", f"TARGET:{target}").values()} == {"PASS"}
    assert "data:image/svg+xml" in (tmp_path / "output.xml").read_text("utf-8")
    assert (tmp_path / "log.html").is_file()


def test_the_list_is_complete() -> None:
    assert set(re.findall(r"\bZOO_[A-Z_]+", (ZOO / "model.c").read_text("utf-8"))) == {*DEFECTS, UNLINKABLE}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_one_check(tmp_path: Path, defect: str, target: str) -> None:
    check, words = DEFECTS[defect]
    tests = run(tmp_path, "--variable", f"DEFECT:{defect}", "--variable", f"TARGET:{target}")
    assert [name for name, (status, _) in tests.items() if status == "FAIL"] == [check]
    assert re.search(words, tests[check][1]), tests[check][1]
    skipped = [name for name, (status, _) in tests.items() if status == "SKIP"]
    assert skipped == SKIPPED.get(check, [])
    assert all("cannot be checked: " in tests[name][1] for name in skipped)


@pytest.mark.parametrize(
    ("target", "reason"), [("serial", "no serial port was named"), ("renode", "tinytrain setup renode")]
)
def test_a_target_that_is_not_there_is_skipped_with_the_reason(
    tmp_path: Path, target: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "RENODE_ROOT", "PYRENODE_PKG", "PYRENODE_BIN", "PYRENODE_BUILD_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINYTRAIN_CACHE", str(tmp_path / "cache"))
    tests = run(tmp_path, "--variable", f"TARGET:{target}")
    assert {status for status, _ in tests.values()} == {"SKIP"}
    assert all(reason in message for _, message in tests.values())
