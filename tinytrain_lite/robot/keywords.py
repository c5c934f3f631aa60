"""The keywords of the lab, for Robot Framework. `libdoc tinytrain_lite.robot.TinyTrain show` prints them.

renode/tinytrain.robot imports this library; suites import that file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from robot.api import Failure, SkipExecution, logger
from robot.api.deco import keyword

from tinytrain_lite import __version__, charts
from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.errors import DoesNotFitError
from tinytrain_lite.measure import falling_rate, sample_order
from tinytrain_lite.robot.amounts import amount, log_picture
from tinytrain_lite.robot.faults import explain
from tinytrain_lite.robot.models import LabImages, compile_named, hand_written, patterns
from tinytrain_lite.target.base import Image, TargetError, TrainResult
from tinytrain_lite.target.choose import TargetUnavailable, check_target, open_target
from tinytrain_lite.target.cycles import estimate
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.protocol import (
    REPLY,
    DeviceFault,
    DeviceRefused,
    ErrorCode,
    Frame,
    Message,
    ProtocolTarget,
    encode,
)
from tinytrain_lite.target.unicorn import OUTSIDE, PowerCut, UnicornFault, UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

T = TypeVar("T")
FAULTS = (UnicornFault, DeviceFault)


class TinyTrain:
    """Trains a model on a device and checks what came of it.

    The device is an emulated board (``unicorn``, or ``renode``, the full system) or a real one (``serial``). The
    same firmware runs on all of them, and so do the same suites.

    Amounts are written as ``70%``, ``128KB`` (1024 bytes each), ``1.5M`` (instructions, cycles) or plain numbers.

    A check that cannot be made is *skipped* with the reason, never passed: a board cannot count instructions, and
    nothing can be measured on a device that has gone silent before (the keyword that met the trouble has failed).
    """

    ROBOT_LIBRARY_SCOPE = "SUITE"
    ROBOT_LIBRARY_VERSION = __version__

    def __init__(self, target: str = "unicorn", board: str = DEFAULT_BOARD, port: str = "") -> None:
        """``target`` is unicorn, renode or serial; ``port`` is the serial port of a real board."""
        self._name, self._board, self._port = target, board, port or None
        self._device: ProtocolTarget | None = None
        self._trouble = "no firmware was flashed"  # why nothing can be measured; empty when all is well
        self._fault = ""
        self._trained: list[tuple[int, float]] = []  # (training image, learning rate) of each step
        self._losses: list[float] = []
        self._cycles: list[int] = []  # as the device reports them

    # ---- preparing ----

    def target_should_be_available(self) -> None:
        """Skips the whole suite, with the reason, if the target is not on this computer. For ``Suite Setup``."""
        try:
            check_target(self._name, self._port)
        except TargetUnavailable as error:
            raise SkipExecution(f"{self._name} is not available: {error}") from None

    def flash_firmware(
        self, model: str = "demo", scheme: str = "sparse", dataset: str = "mnist", per_class: int = 50,
        held_out: int = 100, define: str = "",
    ) -> None:  # fmt: skip
        """Compiles a model, builds its firmware, puts it on the device and switches that on.

        ``model`` is ``demo``, a checkpoint (``*.pkl``) or ``file.py:function``, learning ``per_class`` images of each
        class of ``dataset`` under the update ``scheme``; or a C file, which is given patterns made on the spot and is
        compiled with the macro ``define``. A board (``serial``) must have been flashed before, with the same arguments:
        `tinytrain flash demo --scheme sparse` has the same defaults.

        | Flash Firmware | model=demo | scheme=sparse | dataset=mnist |
        | Flash Firmware | model=zoo/model.c | define=ZOO_SLOW_KERNEL |
        """
        self.switch_off()
        if model.endswith(".c") and self._name == "serial":
            raise SkipExecution("a board keeps what was flashed; hand-written models run in emulators only")
        if model.endswith(".c"):
            files = hand_written(Path(model), define)
        else:
            files, images = compile_named(model, scheme, dataset, per_class, held_out)
        with _folder(files) as folder:
            self._elf = build_firmware(folder, board=self._board)
            self._library = build_host_library(folder)
        with closing(HostTarget(self._library)) as host:
            self._expected = host.hello()
        self._images: LabImages = patterns(self._expected) if model.endswith(".c") else images
        logger.info(str(self._elf))
        self._switch_on(lambda: open_target(self._name, self._elf, board=self._board, port=self._port))

    def _switch_on(self, start: Callable[[], ProtocolTarget]) -> None:
        self._trouble = self._fault = ""
        self._trained, self._losses, self._cycles = [], [], []
        self._device = self._watched(start)

    def switch_off(self) -> None:
        """Switches the device off. For ``Suite Teardown``; harmless if nothing runs."""
        if self._device:
            self._device.close()
        self._device, self._trouble = None, "the device is switched off"

    def firmware_should_not_fit(self, model: str, define: str, reason: str) -> None:
        """The C file, compiled with the macro, must be refused as too large, in words that hold ``reason``."""
        with _folder(hand_written(Path(model), define)) as folder:
            try:
                build_firmware(folder, board=self._board)
            except DoesNotFitError as error:
                if reason not in str(error):
                    raise Failure(f"it does not fit, but for another reason than '{reason}': {error}") from None
                logger.info(str(error))
                return
        raise Failure(f"{model} with {define} was linked although it should not fit")

    # ---- talking ----

    def board_should_say_hello(self) -> None:
        """The firmware answers, and it is the model and the board that the suite expects."""
        info, expected = self._ask(lambda device: device.hello()), self._expected
        if (info.name, info.digest) != (expected.name, expected.digest):
            raise Failure(
                f"the board runs '{info.name}' ({info.digest:08x}), not '{expected.name}' ({expected.digest:08x}): "
                "flash it with the arguments of this suite (tinytrain flash demo --scheme ...)"
            )
        if info.board != self._board:
            raise Failure(f"the firmware was built for {info.board}, not for {self._board}")
        logger.info(str(info))

    def inference_should_equal_host(self, images: int = 8) -> None:
        """The logits of held-out images are bit for bit what the same C computes on this computer."""
        with closing(self._replayed()) as host:
            for index, image in enumerate(self._images.test[: int(images)]):
                here = host.infer(image).logits
                there = self._ask(partial(_logits, image))
                if here.tobytes() != there.tobytes():
                    raise Failure(f"held-out image {index}: the device computes {there}, this computer {here}")

    def parameters_should_equal_host(self) -> None:
        """After the same training, every parameter on the device is byte for byte what it is on this computer."""
        there = self._ask(lambda device: device.read_params())
        with closing(self._replayed()) as host:
            for name, here in host.read_params().items():
                wrong = np.flatnonzero(here != there[name])
                if wrong.size:
                    raise Failure(f"'{name}' differs in {wrong.size} of {here.size} bytes, first at byte {wrong[0]}")

    def _replayed(self) -> HostTarget:
        """The same C on this computer, after the training that the device has had."""
        host = HostTarget(self._library)
        for index, rate in self._trained:
            host.set_learning_rate(rate)
            host.train(self._images.train[index], int(self._images.train_labels[index]))
        return host

    def bad_frames_should_change_nothing(self) -> None:
        """Damaged and dishonest requests are each answered by the right error code, and no parameter moves."""
        before = self._ask(lambda device: device.read_params())
        image = self._images.train[0].tobytes()
        wires = [
            (ErrorCode.FRAMING, b"\x05abc\0"),
            (ErrorCode.CRC, b"\x02x\0"),
            (ErrorCode.VERSION, encode(Frame(Message.HELLO, 1, b""), version=99)),
            (ErrorCode.TYPE, encode(Frame(Message.ERROR, 1, b""))),
            (ErrorCode.LENGTH, encode(Frame(Message.TRAIN, 1, b"\0\0" + image[1:]))),
            (ErrorCode.LABEL, encode(Frame(Message.TRAIN, 1, b"\xff\xff" + image))),
            (ErrorCode.RANGE, encode(Frame(Message.READ_PARAMS, 1, b"\xff" * 8))),
        ]
        for code, wire in wires:
            reply = self._ask(partial(_reply, wire))
            if (reply.type, reply.payload) != (Message.ERROR | REPLY, bytes([code])):
                raise Failure(f"a bad frame should be answered by {code.name}, was by {reply}")
        after = self._ask(lambda device: device.read_params())
        if any(before[name].tobytes() != after[name].tobytes() for name in before):
            raise Failure("a request that was refused has changed the parameters")

    # ---- training ----

    def train_on_device(self, steps: int = 100, rate: float = 0.05, seed: int = 0) -> None:
        """Sends ``steps`` training images one by one; the device learns from each. Draws the loss into the log.

        As in `tinytrain run`, the learning rate falls from ``rate`` linearly towards 0. Fails if the firmware faults or
        stops answering, saying where.
        """
        order = sample_order(len(self._images.train), int(steps), int(seed)).tolist()
        for done, index in enumerate(order):
            image, label = self._images.train[index], int(self._images.train_labels[index])
            now = falling_rate(float(rate), done, len(order))
            result = self._ask(partial(_step, image, label, now))
            self._trained.append((index, now))
            self._losses.append(result.loss)
            self._cycles.append(result.cycles)
        window = max(1, len(self._losses) // 20)
        smooth = np.convolve(self._losses, np.full(window, 1 / window), "valid")
        log_picture(charts.line_chart("loss", smooth.tolist(), "training step", f"loss, mean of {window}"))

    def accuracy_should_be_at_least(self, least: str, images: int = 100) -> None:
        """Of the first ``images`` held-out images, the device classifies at least this share right (70% or 0.7)."""
        accuracy = self._accuracy(int(images))
        if accuracy < amount(least):
            raise Failure(f"accuracy is {accuracy:.1%} of {images} images, not at least {least}{self._loss_hint()}")

    def accuracy_should_be_below(self, most: str, images: int = 100) -> None:
        """The reverse of `Accuracy Should Be At Least`: shows, before training, that there is something to learn."""
        accuracy = self._accuracy(int(images))
        if accuracy >= amount(most):
            raise Failure(f"accuracy is {accuracy:.1%} of {images} images, not below {most}")

    def _accuracy(self, images: int) -> float:
        test, labels = self._images.test[:images], self._images.test_labels[:images]
        if len(test) < images:
            raise Failure(f"there are only {len(test)} held-out images, not {images}; set held_out of Flash Firmware")
        accuracy = self._ask(lambda device: device.evaluate(test, labels))
        logger.info(f"{accuracy:.1%} of {images} images")
        return accuracy

    def _loss_hint(self) -> str:
        part = len(self._losses) // 5
        if not part:
            return "; nothing was trained"
        first, last = float(np.mean(self._losses[:part])), float(np.mean(self._losses[-part:]))
        if last >= first:
            return f"; the loss rose from {first:.3g} to {last:.3g}: does the update go against the gradient?"
        return f"; the loss fell from {first:.3g} to {last:.3g}: train longer, or try another rate or scheme"

    # ---- measuring ----

    @keyword("SRAM High Water Mark Should Be Below")
    def sram_high_water_mark_should_be_below(self, limit: str) -> None:
        """.data + .bss + arena + the deepest stack since power-on, in bytes. Draws them into the log."""
        info, stack = self._ask(lambda device: (device.hello(), device.stats().stack_used))
        parts = [("data", info.data_bytes), ("bss", info.bss_bytes), ("arena", info.arena_bytes), ("stack", stack)]
        used, words = sum(size for _, size in parts), ", ".join(f"{name} {size:,}" for name, size in parts)
        log_picture(charts.stacked_bar("SRAM", parts, int(amount(limit)), "bytes"))
        logger.info(f"{used:,} bytes: {words}")
        if used >= amount(limit):
            over = int(used - amount(limit)) + 1
            raise Failure(f"SRAM high-water mark is {used:,} bytes, {over:,} too many for 'below {limit}': {words}")

    def instructions_per_step_should_be_below(self, limit: str) -> None:
        """Retired instructions of the longest training step, exact. Skipped on a real board, which counts cycles."""
        if self._name == "serial":
            raise SkipExecution("a board counts core cycles, not instructions")
        self._compare("instructions", max(self._steps()), limit)

    def cycles_per_step_should_be_below(self, limit: str) -> None:
        """Core cycles of a training step: measured by the DWT on a board (the longest step), elsewhere estimated by the
        Cortex-M7 model from the executed blocks of the first step."""
        if self._name == "serial":
            self._compare("cycles, measured,", max(self._steps()), limit)
            return
        self._steps()
        with UnicornTarget(self._elf, board=self._board) as twin:  # the same ELF gives the same blocks on every target
            index, rate = self._trained[0]
            twin.set_learning_rate(rate)
            twin.reset_profile()
            twin.train(self._images.train[index], int(self._images.train_labels[index]))
            costs = estimate(twin.profile(), twin.read_memory).costs
        self._compare("cycles, estimated,", round(sum(c.cycles for c in costs if c.region != OUTSIDE)), limit)

    def _steps(self) -> list[int]:
        self._running()
        if not self._cycles:
            raise Failure("no training step was made on the device; use Train On Device first")
        return self._cycles

    def _compare(self, what: str, value: int, limit: str) -> None:
        clock = load_board(self._board).clock_hz
        time = f", {1e3 * value / clock:.2f} ms at {clock / 1e6:g} MHz" if "cycles" in what else ""
        logger.info(f"{value:,} {what} a step{time}")
        if value >= amount(limit):
            raise Failure(f"{value:,} {what} a training step, {value / amount(limit):.1f} times the {limit} allowed")

    # ---- faults ----

    def no_fault_should_have_occurred(self) -> None:
        """No fault since the firmware was flashed."""
        if self._fault:
            raise Failure(f"the firmware faulted: {self._fault}")
        self._running()

    def training_should_fault(self, reason: str, steps: int = 20) -> None:
        """Training must end in a fault, reported in words that hold ``reason``."""
        try:
            self.train_on_device(steps)
        except Failure:
            if not self._fault:
                raise
        if not self._fault:
            raise Failure(f"{steps} steps of training should have met a fault, and did not")
        if reason not in self._fault:
            raise Failure(f"there was a fault, but without '{reason}': {self._fault}")
        logger.info(self._fault)

    # ---- keeping ----

    def save_to_flash(self) -> None:
        """Keeps what was learned in the device's flash."""
        logger.info(f"copy {self._ask(lambda device: device.save())}")

    def load_from_flash(self) -> None:
        """Brings back the newest good copy."""
        logger.info(f"copy {self._ask(lambda device: device.load())}")

    def reset_model(self) -> None:
        """Parameters as first flashed."""
        self._ask(lambda device: device.reset())

    def parameters_should_be_as_flashed(self) -> None:
        """No trace of training: what the device has is what it was flashed with."""
        there = self._ask(lambda device: device.read_params())
        with closing(HostTarget(self._library)) as host:
            if any(there[name].tobytes() != here.tobytes() for name, here in host.read_params().items()):
                raise Failure("the parameters are not those that were flashed")

    def cut_power_while_saving(self, operation: int) -> None:
        """Power goes in the middle of the ``operation``th flash operation of a save; then the device is switched on
        again. Emulated by ``unicorn`` only; skipped elsewhere."""
        device = self._running()
        if not isinstance(device, UnicornTarget):
            raise SkipExecution(f"{self._name} cannot cut its own power in the middle of a flash operation")
        device.cut_power(int(operation))
        try:
            device.save()
        except PowerCut:
            self.switch_off()
            self._trouble, self._device = "", UnicornTarget(self._elf, board=self._board, storage=device.storage)
            return
        raise Failure(f"a save has fewer than {operation} flash operations")

    # ---- what goes wrong ----

    def _running(self) -> ProtocolTarget:
        if self._trouble or self._device is None:
            raise SkipExecution(f"cannot be checked: {self._trouble}")
        return self._device

    def _ask(self, question: Callable[[ProtocolTarget], T]) -> T:
        device = self._running()
        return self._watched(lambda: question(device))

    def _watched(self, act: Callable[[], T]) -> T:
        """Do something with the device; trouble becomes a failure, and is remembered for the checks that follow."""
        try:
            return act()
        except (DeviceRefused, TargetUnavailable) as error:
            raise Failure(str(error)) from None
        except FAULTS as error:
            self._fault = self._trouble = explain(str(error), Firmware(self._elf), load_board(self._board))
            self._give_up(f"the firmware faulted after {len(self._trained)} training steps: {self._fault}")
        except TargetError as error:
            self._trouble = str(error)
            self._give_up(
                f"the firmware does not answer: {error}. Is the USART on (CR1: UE, RE, TE), and does the main loop "
                "come back to tt_protocol_receive?"
            )

    def _give_up(self, message: str) -> NoReturn:
        raise Failure(message) from None


@contextmanager
def _folder(files: dict[str, str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, "utf-8")
        yield Path(folder)


def _logits(image: Image, device: ProtocolTarget) -> np.ndarray:
    return device.infer(image).logits


def _step(image: Image, label: int, rate: float, device: ProtocolTarget) -> TrainResult:
    device.set_learning_rate(rate)
    return device.train(image, label)


def _reply(wire: bytes, device: ProtocolTarget) -> Frame:
    return device.exchange(wire)
