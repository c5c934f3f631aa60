"""The emulated board: the same bytes as the host, exact counts, and faults that say what happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import unicorn
from toy import images, toy_dir
from unicorn import arm_const

from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.unicorn import UnicornFault, UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

RAM, RAM_END = 0x20000000, 0x20050000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_dir(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def elf(model: Path) -> Path:
    return build_firmware(model)


@pytest.mark.parametrize("board", ["nucleo-f746zg", "stm32f746g-disco"])
def test_boots_and_says_hello(model: Path, board: str) -> None:
    with UnicornTarget(build_firmware(model, board=board), board=board) as target:
        info = target.hello()
    assert (info.name, info.board, info.digest) == ("toy", board, 0x12345678)
    assert (info.image_shape, info.classes, info.clock_hz) == ((4, 4, 1), 3, 216_000_000)
    firmware = target.firmware
    assert (info.data_bytes, info.bss_bytes) == (firmware.bytes_of("data"), firmware.bytes_of("bss"))
    assert (info.arena_bytes, info.stack_bytes) == (firmware.bytes_of("arena"), 4096)


def test_first_step_by_hand(elf: Path) -> None:
    """All weights are 0: the logits are 0, the gradient is -onehot, the update is rate * image / 2^14."""
    pictures, _ = images(1)
    with UnicornTarget(elf) as target:
        target.set_learning_rate(0.5)
        result = target.train(pictures[0], 1)
        params = target.read_params()
    assert (result.loss, result.predicted) == (0.5, 0)
    weights = params["weights"].view("<f4").reshape(3, 16)
    assert not weights[[0, 2]].any()
    np.testing.assert_array_equal(weights[1], pictures[0].reshape(16).astype(np.float32) / 2**15)
    assert params["bias"].view("<f4").tolist() == [0, 0.5, 0]


def test_same_bytes_as_the_host(model: Path, elf: Path) -> None:
    pictures, labels = images(50)
    with UnicornTarget(elf) as device, HostTarget(build_host_library(model)) as host:
        assert device.train_many(pictures, labels).loss.tobytes() == host.train_many(pictures, labels).loss.tobytes()
        on_device, on_host = device.read_params(), host.read_params()
        assert list(on_device) == list(on_host)
        assert all(on_device[name].tobytes() == on_host[name].tobytes() for name in on_host)
        assert device.infer(pictures[0]).logits.tobytes() == host.infer(pictures[0]).logits.tobytes()
        assert device.evaluate(pictures, labels) == host.evaluate(pictures, labels)
        assert device.stats().steps == 50


# ---- counting ----


def instructions_of(target: UnicornTarget, address: int, size: int) -> list[tuple[int, int]]:
    """(address, halfword) of each instruction of a block."""
    code = np.frombuffer(target.read_memory(address, size), "<u2")
    found, index = [], 0
    while index < len(code):
        found.append((address + 2 * index, int(code[index])))
        index += 2 if code[index] >= 0xE800 else 1
    return found


def test_count_against_an_instruction_hook(elf: Path) -> None:
    """Every instruction, and how often. Unicorn's hook keeps quiet about those that an IT block skips; the core
    does issue them, so of these the count is that of their IT instruction."""
    pictures, labels = images(3)
    with UnicornTarget(elf) as target:
        target.hello()
        stepped: Counter[int] = Counter()
        target._engine.hook_add(unicorn.UC_HOOK_CODE, lambda engine, address, size, data: stepped.update([address]))
        target._engine.ctl_flush_tb()
        target.reset_profile()
        before = target.instructions
        target.train_many(pictures, labels)
        target.infer(pictures[0])
        target.stats()
        counted: Counter[int] = Counter()
        in_it_block: dict[int, int] = {}
        for address, size, _, executions in target.profile():
            block = instructions_of(target, address, size)
            for index, (place, half) in enumerate(block):
                counted[place] += executions
                if half & 0xFF00 == 0xBF00 and half & 15:
                    length = 5 - (half & -half & 15).bit_length()
                    in_it_block.update({skipped: place for skipped, _ in block[index + 1 : index + 1 + length]})
    assert target.instructions - before == sum(counted.values())
    assert set(stepped) <= set(counted)
    for place, times in counted.items():
        if place in in_it_block:
            assert times == stepped[in_it_block[place]] >= stepped[place], hex(place)
        else:
            assert times == stepped[place], hex(place)
    assert any(counted[place] > stepped[place] for place in in_it_block)


def test_cycles_in_the_reply_are_exact(elf: Path) -> None:
    """CYCCNT is read by one instruction of tt_port_cycles; count what runs between its two entries."""
    pictures, _ = images(1)
    with UnicornTarget(elf) as target:
        target.train(pictures[0], 1)
        (port_cycles,) = (f.address for f in target.firmware.functions if f.name == "tt_port_cycles")
        trace: list[int] = []
        target._engine.hook_add(unicorn.UC_HOOK_CODE, lambda engine, address, size, data: trace.append(address))
        target._engine.ctl_flush_tb()
        reported = target.train(pictures[0], 1).cycles
        first, second = (index for index, address in enumerate(trace) if address == port_cycles)
        reset_count = target.instructions
        target.stats()
        assert target.instructions > reset_count
        names = [target.firmware.function_name(address) for address in trace[first:second]]
    skipped = reported - (second - first)  # instructions skipped in IT blocks, of which this path has few
    assert 0 <= skipped <= 4
    assert {"tt_op_forward", "tt_kernel_dot", "tt_op_update", "train_step"} <= set(names)


def test_counts_repeat(elf: Path) -> None:
    pictures, labels = images(10)
    runs = []
    for _ in range(2):
        with UnicornTarget(elf) as target:
            cycles = target.train_many(pictures, labels).cycles.tolist()
            runs.append((target.instructions, cycles, target.profile()))
    assert runs[0] == runs[1]


def test_regions_charge_a_shared_kernel_to_its_op(elf: Path) -> None:
    pictures, _ = images(1)
    with UnicornTarget(elf) as target:
        assert target.regions == ("", "tt_op_forward", "tt_op_update")
        target.reset_profile()
        before = target.instructions
        result = target.train(pictures[0], 0)
        functions = target.functions()
        assert sum(function.instructions for function in functions) == target.instructions - before
        by_region: Counter[str] = Counter()
        for function in functions:
            by_region[function.region] += function.instructions
        assert {f.region for f in functions if f.name == "tt_kernel_dot"} == {"tt_op_forward"}
        assert {f.region for f in functions if f.name == "tt_protocol_receive"} == {""}
        inside = by_region["tt_op_forward"] + by_region["tt_op_update"]
        assert inside < result.cycles < inside + 20  # the rest is the call between the two readings of CYCCNT
        target.reset_profile()
        assert target.profile() == []
    with UnicornTarget(elf, regions=["tt_kernel_dot"]) as target:
        target.infer(pictures[0])
        assert {f.region for f in target.functions() if f.name == "tt_kernel_dot"} == {"tt_kernel_dot"}
    with pytest.raises(TargetError, match="no function nonsense"):
        UnicornTarget(elf, regions=["nonsense"])


# ---- memory ----


def test_memory_report(elf: Path) -> None:
    pictures, labels = images(4)
    with UnicornTarget(elf) as target:
        lowest = []

        def watch(engine: object, access: int, address: int, size: int, value: int, data: object) -> None:
            lowest.append(address)

        bottom, top = target.firmware.stack
        target._engine.hook_add(unicorn.UC_HOOK_MEM_WRITE, watch, begin=bottom, end=top - 1)
        for _ in range(2):
            target.paint_arena()
            target.train_many(pictures, labels)
            target.evaluate(pictures, labels)
        stats, report = target.stats(), target.memory_report()
    assert report.arena_used == 16  # the image is all that the toy keeps there
    assert report.arena == 32
    assert report.stack == 4096
    assert report.stack_used == stats.stack_used == top - min(lowest)
    assert report.high_water == report.data + report.bss + 32 + report.stack_used


# ---- faults ----


@pytest.mark.parametrize(
    ("address", "what"),
    [
        (RAM_END, "write to an unmapped address 0x20050000"),
        (RAM - 4, "write to an unmapped address 0x1ffffffc"),
        (0x60000000, "write to an unmapped address 0x60000000"),
        (0x40000000, "write to an unmapped address 0x40000000"),
        (0x08000100, "write to read-only memory 0x08000100"),
        (0x00200000, "write to read-only memory 0x00200000"),
        (0x00000004, "write to read-only memory 0x00000004"),  # ITCM: a null pointer and a bit
    ],
)
def test_wild_store_names_the_function(tmp_path: Path, address: int, what: str) -> None:
    pictures, _ = images(1)
    elf = build_firmware(toy_dir(tmp_path, WILD_ADDRESS=f"{address:#x}u"))
    with UnicornTarget(elf) as target:
        target.train(pictures[0], 0)
        with pytest.raises(UnicornFault, match=f"{what} in toy_wild_store") as fault:
            target.train(pictures[0], 2)
        assert fault.value.address == address
        function = target.firmware.function_at(fault.value.pc)
        assert function is not None and function.name == fault.value.function == "toy_wild_store"
        assert target.read_memory(fault.value.pc, 2) != b"\0\0"


def test_stack_overflow_names_the_function(tmp_path: Path) -> None:
    pictures, _ = images(1)
    with UnicornTarget(build_firmware(toy_dir(tmp_path, RECURSE=1))) as target:
        target.train(pictures[0], 0)
        with pytest.raises(UnicornFault, match=r"stack overflow \(4096 bytes are reserved\)") as fault:
            target.train(pictures[0], 2)
        assert fault.value.function == "toy_recurse"
        assert fault.value.address is not None and RAM - 64 <= fault.value.address < RAM


def test_endless_loop_meets_the_limit(tmp_path: Path) -> None:
    pictures, _ = images(1)
    with (
        UnicornTarget(build_firmware(toy_dir(tmp_path, HANG=1)), instruction_limit=100_000) as target,
        pytest.raises(TargetError, match="within 100000 instructions; it is in toy_wild_store"),
    ):
        target.train(pictures[0], 2)


def test_not_firmware(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is not firmware"):
        UnicornTarget(tmp_path / "missing.elf")
    (tmp_path / "text.elf").write_text("hello")
    with pytest.raises(TargetError, match="is not firmware"):
        UnicornTarget(tmp_path / "text.elf")


def test_fault_handler_reports_on_the_usart(elf: Path) -> None:
    """Unicorn takes no exceptions, so the test does what the core would: push a frame, enter the handler."""
    with UnicornTarget(elf) as target:
        engine, bottom = target._engine, target.firmware.stack[0]
        (handler,) = (f.address for f in target.firmware.functions if f.name == "tt_fault")
        stacked = np.array([0, 1, 2, 3, 12, 0x08000A11, 0x08000A3C, 0x01000000], "<u4").tobytes()
        engine.mem_write(bottom + 0x400, stacked)
        for frame, status, pc, lr in [
            (bottom + 0x400, 0x00020082, 0x08000A3C, 0x08000A11),
            (bottom + 0x400, 0x00000010, 0, 0),  # MSTKERR: what lies there was not stacked by this fault
            (bottom + 0x400, 0x00001000, 0, 0),  # STKERR
            (bottom - 0x20, 0x00020082, 0, 0),
        ]:
            engine.mem_write(0xE000ED28, status.to_bytes(4, "little"))  # CFSR
            engine.reg_write(arm_const.UC_ARM_REG_SP, frame)
            engine.reg_write(arm_const.UC_ARM_REG_PC, handler | 1)
            with pytest.raises(TargetError, match="went to sleep; it is in tt_fault_report"):
                target.run()
            line = target._machine.take().decode()
            assert line.startswith(f"\r\nHARDFAULT pc={pc:#010x} lr={lr:#010x} cfsr={status:#010x} hfsr=0x00000000")
            assert line.endswith(f"sp={frame:#010x}\r\n")
