"""SAVE and LOAD: the bytes in flash, exact resumption, and a power cut at every flash operation."""

from __future__ import annotations

import ctypes
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from networks import images as network_images
from networks import residual_network
from toy import images, toy_dir

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.board import load_board
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import compile_program
from tinytrain_lite.sparse.scheme import preset
from tinytrain_lite.target.base import Target, TargetError
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.protocol import DeviceRefused, ErrorCode
from tinytrain_lite.target.unicorn import PowerCut, UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

FIRST_SLOT_BYTES = 3 * 0x8000  # sectors 1, 2, 3; the second slot is sector 4
DIGEST = 0x12345678  # of the toy


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_firmware(toy_dir(tmp_path_factory.mktemp("toy")))


def state(target: Target) -> tuple[dict[str, bytes], int, float]:
    stats = target.stats()
    return {name: p.tobytes() for name, p in target.read_params().items()}, stats.steps, stats.learning_rate


def slot(sequence: int, payload: bytes, digest: int = DIGEST, magic: bytes = b"TTS1") -> bytes:
    """A slot as tt_storage.h describes it, made with struct and zlib."""
    covered = struct.pack("<III", sequence, digest, len(payload))
    return magic + covered + struct.pack("<I", zlib.crc32(covered + payload)) + payload


def toy_payload(fill: float = 1.0, steps: int = 7, rate: float = 0.5) -> bytes:
    return np.full(51, fill, "<f4").tobytes() + bytes(range(256)) * 4 + struct.pack("<If", steps, rate)


def flash(first: bytes = b"", second: bytes = b"") -> bytes:
    return first.ljust(FIRST_SLOT_BYTES, b"\xff") + second.ljust(0x20000, b"\xff")


def test_slots_leave_the_firmware_alone_and_cover_whole_sectors() -> None:
    board = load_board()
    assert sum(board.flash_sectors) == board.memories["flash"].bytes == 2**20
    one, two = (slot.region for slot in board.slots)
    assert (one.base, one.end, two.base, two.end) == (0x08008000, 0x08020000, 0x08020000, 0x08040000)
    assert (board.boot.end, board.program.base, board.program.end) == (one.base, two.end, 0x08100000)


def test_what_lies_in_flash(elf: Path) -> None:
    pictures, labels = images(4)
    with UnicornTarget(elf) as target:
        assert target.storage == flash()
        target.set_learning_rate(0.125)
        target.train_many(pictures, labels)
        payload = b"".join(p.tobytes() for p in target.read_params().values()) + struct.pack("<If", 4, 0.125)
        assert target.save() == 1
        assert target.storage == flash(slot(1, payload))
        assert target.save() == 2
        assert target.storage == flash(slot(1, payload), slot(2, payload))
        target.train(pictures[0], 0)
        assert target.save() == 3
        assert target.storage[FIRST_SLOT_BYTES:] == flash(b"", slot(2, payload))[FIRST_SLOT_BYTES:]
        assert struct.unpack_from("<4sI", target.storage) == (b"TTS1", 3)


@pytest.mark.parametrize("rounding", ["fraction8", "stochastic"])
def test_training_goes_on_as_if_the_power_had_stayed(tmp_path: Path, rounding: str) -> None:
    graph = residual_network(5)
    program = compile_program(graph, preset("last-3"), *network_images(graph, 4, 5), UpdateRule(rounding))
    generate(program, tmp_path)
    firmware = build_firmware(tmp_path)
    x, y = network_images(program.infer, 12, seed=9)
    with UnicornTarget(firmware) as whole:
        whole.set_learning_rate(0.05)
        losses = whole.train_many(x, y).loss
        expected = state(whole)
    with UnicornTarget(firmware) as first:
        first.set_learning_rate(0.05)
        first.train_many(x[:6], y[:6])
        first.save()
    with UnicornTarget(firmware, storage=first.storage) as second:
        assert second.stats().steps == 0, "boot starts from the flashed model"
        assert second.load() == 1
        np.testing.assert_array_equal(second.train_many(x[6:], y[6:]).loss, losses[6:])
        assert state(second) == expected
    with HostTarget(build_host_library(tmp_path)) as host:
        host.set_learning_rate(0.05)
        host.train_many(x[:6], y[:6])
        assert host.save() == 1
        host.train_many(x[:3], y[:3])
        host.load()
        np.testing.assert_array_equal(host.train_many(x[6:], y[6:]).loss, losses[6:])
        assert state(host) == expected


def test_a_power_cut_at_any_flash_operation_loses_at_most_the_newest_save(tmp_path: Path) -> None:
    """Erasures and words of the first save, of a save into the other slot, and of one over an old copy."""
    elf = build_firmware(toy_dir(tmp_path, BLOB_BYTES=32))
    pictures, labels = images(3)
    storage, copies = None, [None]  # copies[n]: what copy n must bring back
    for number in (1, 2, 3):
        with UnicornTarget(elf, storage=storage) as target:
            if storage:
                target.load()
            target.train(pictures[number - 1], labels[number - 1] % 2)
            copies.append(state(target))
            before = target.flash_operations
            assert target.save() == number
            operations = target.flash_operations - before
            finished = target.storage
        assert operations == 1 + 5 + (192 + 12 + 32 + 4 + 4) // 4  # an erasure, the header, the payload
        for operation in range(1, operations + 1):
            with UnicornTarget(elf, storage=storage) as target:
                if storage:
                    target.load()
                target.train(pictures[number - 1], labels[number - 1] % 2)
                target.cut_power(operation)
                with pytest.raises(PowerCut):
                    target.save()
            with UnicornTarget(elf, storage=target.storage) as target:
                if number == 1:
                    with pytest.raises(DeviceRefused, match="NO_SAVE"):
                        target.load()
                    continue
                assert target.load() == number - 1, f"copy {number}, operation {operation} of {operations}"
                assert state(target) == copies[number - 1]
        storage = finished


def test_saving_works_again_after_a_power_cut(elf: Path) -> None:
    with UnicornTarget(elf, storage=flash(slot(7, toy_payload(2)), slot(8, toy_payload(3)))) as target:
        target.load()
        target.cut_power(100)
        with pytest.raises(PowerCut):
            target.save()
    with UnicornTarget(elf, storage=target.storage) as target:
        assert target.load() == 8
        assert target.save() == 9
        assert target.load() == 9
        assert target.read_params()["bias"].view("<f4").tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("first", "second", "loads"),
    [
        (slot(1, toy_payload(1)), slot(2, toy_payload(2)), 2),
        (slot(3, toy_payload(3)), slot(2, toy_payload(2)), 3),
        (slot(0xFFFFFFFF, toy_payload(1)), slot(0, toy_payload(0)), 0),  # the count wraps
        (slot(1, toy_payload(1)), slot(2, toy_payload(2))[:-1] + b"\x00", 1),  # one bit of the learning rate
        (slot(1, toy_payload(1)), slot(2, toy_payload(2), digest=DIGEST ^ 1), 1),  # another model's
        (slot(1, toy_payload(1)), slot(2, toy_payload(2) + bytes(4)), 1),
        (slot(1, toy_payload(1)), slot(2, toy_payload(2), magic=b"TTS\xff"), 1),
        (b"", slot(2, toy_payload(2)), 2),
        (b"", slot(2, toy_payload(2), digest=0), None),
        (bytes(2000), bytes(2000), None),
    ],
)
def test_the_newest_good_copy_of_this_model_is_loaded(
    elf: Path, first: bytes, second: bytes, loads: int | None
) -> None:
    with UnicornTarget(elf, storage=flash(first, second)) as target:
        if loads is None:
            before = state(target)
            with pytest.raises(DeviceRefused) as error:
                target.load()
            assert error.value.code == ErrorCode.NO_SAVE
            assert state(target) == before
            return
        assert target.load() == loads
        params, steps, rate = state(target)
        assert (steps, rate) == (7, 0.5)
        assert set(np.frombuffer(params["weights"], "<f4")) == {loads}
        assert params["blob"] == bytes(range(256)) * 4


def test_more_than_a_slot_holds_is_refused(tmp_path: Path) -> None:
    """12 * side * side bytes of weights: 90 fits into 98,304 with all else, 91 does not."""
    for side, fits in [(90, True), (91, False)]:
        with UnicornTarget(build_firmware(toy_dir(tmp_path, SIDE=side))) as target:
            if fits:
                assert target.save() == target.load() == 1
                continue
            with pytest.raises(DeviceRefused, match="ROOM.*larger than a slot"):
                target.save()
            assert target.storage == flash()


def test_write_params(elf: Path, tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).integers(0, 256, 1024, np.uint8)  # 64 frames: an image has 16 bytes
    with UnicornTarget(elf) as device, HostTarget(build_host_library(toy_dir(tmp_path))) as host:
        for target in (device, host):
            before = target.read_params()
            target.write_params({"blob": wanted})
            after = target.read_params()
            np.testing.assert_array_equal(after["blob"], wanted)
            assert after["weights"].tobytes() == before["weights"].tobytes()
            with pytest.raises(TargetError, match="no trained parameter 'head'; it has weights, bias, blob"):
                target.write_params({"blob": wanted * 0, "head": wanted})
            with pytest.raises(TargetError, match="'bias' has 12 bytes, got 1024"):
                target.write_params({"blob": wanted * 0, "bias": wanted})
            np.testing.assert_array_equal(target.read_params()["blob"], wanted)


# ---- the model of the flash controller ----

BASE, KEYR, SR, CR = 0, 0x04, 0x0C, 0x10
PG, SER, X32, STRT, LOCK, BSY, SEQUENCE_ERROR, PARALLELISM_ERROR = 1, 2, 2 << 8, 1 << 16, 1 << 31, 1 << 16, 0x80, 0x40


class Controller:
    """Pokes the native controller as the bus would."""

    def __init__(self, target: UnicornTarget) -> None:
        self.native, self.window = target._machine._native, target._machine._named["flash_interface"]
        for name in ("machine_on_read", "machine_on_flash_read"):
            getattr(self.native, name).restype = ctypes.c_uint64

    def write(self, register: int, value: int) -> None:
        self.call("machine_on_write", register, 4, value)

    def read(self, register: int) -> int:
        return self.call("machine_on_read", register, 4)

    def store(self, offset: int, value: int, size: int = 4) -> None:
        self.call("machine_on_flash_write", offset, size, value)

    def load(self, offset: int) -> int:
        return self.call("machine_on_flash_read", offset, 4)

    def call(self, name: str, offset: int, size: int, *value: int) -> int:
        u64 = ctypes.c_uint64
        arguments = [None, u64(offset), ctypes.c_uint(size), *map(u64, value), ctypes.c_void_p(self.window)]
        return int(getattr(self.native, name)(*arguments))

    def unlock(self) -> None:
        self.write(KEYR, 0x45670123)
        self.write(KEYR, 0xCDEF89AB)


def test_flash_controller_follows_the_manual(elf: Path) -> None:
    with UnicornTarget(elf, storage=flash(bytes(64), bytes(64))) as target:
        flash_controller = Controller(target)
        assert flash_controller.read(CR) == LOCK
        flash_controller.write(CR, PG | X32)
        flash_controller.store(0x100, 0)
        assert flash_controller.load(0x100) == 0xFFFFFFFF, "locked"
        assert flash_controller.read(SR) == SEQUENCE_ERROR
        flash_controller.write(SR, SEQUENCE_ERROR)
        assert flash_controller.read(SR) == 0

        flash_controller.unlock()
        flash_controller.write(CR, PG | X32)
        flash_controller.store(0x100, 0xFFFF00F0)
        assert flash_controller.read(SR) & BSY
        flash_controller.store(0x100, 0x0F0F0FFF)
        assert flash_controller.load(0x100) == 0x0F0F00F0, "programming only clears bits"
        flash_controller.store(0x104, 0, size=1)
        assert flash_controller.load(0x104) == 0xFFFFFFFF
        while (status := flash_controller.read(SR)) & BSY:
            pass
        assert status == PARALLELISM_ERROR, "a byte with PSIZE of a word"

        flash_controller.write(CR, SER | 1 << 3 | X32 | STRT)
        assert target.storage[:0x8000] == b"\xff" * 0x8000
        assert target.storage[FIRST_SLOT_BYTES:][:64] == bytes(64), "the other sectors stay"
        flash_controller.write(CR, LOCK)
        flash_controller.write(KEYR, 0xCDEF89AB)
        flash_controller.unlock()
        assert flash_controller.read(CR) & LOCK, "a wrong key locks until reset"
