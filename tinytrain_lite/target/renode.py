"""The full system emulator: the same ELF, with peripherals, exceptions and MPU, in Renode through pyrenode3.

    with RenodeTarget(elf) as target:
        target.train(image, label).cycles    # CYCCNT: retired instructions, exactly (renode/stm32f746.repl says why)
        target.instructions                  # all that the core retired since power-on
        target.save_snapshot(path); target.load_snapshot(path)

Renode runs inside this process and knows one emulation, so there is one RenodeTarget at a time. Virtual time
advances only while a reply is awaited, so that a run is repeatable; the polls of the USART until the end of a time
slice are the one thing that ``instructions`` has more than Unicorn.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.choose import TargetUnavailable
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.protocol import ProtocolTarget
from tinytrain_lite.target.renode_home import find_renode, platform_files
from tinytrain_lite.toolchain import cache_dir

# Virtual time between two looks at the USART. Polling it is slow to emulate (some 2 MIPS) and a look takes as long as
# 100,000 computed instructions, so a short request gets a short slice, and a long one slices that grow.
SLICES_US = (50, 100, 200, 400)  # 10,000 instructions, 20,000, ...
BOOT_US = 100_000
PATIENCE_US = 60_000_000  # 12 billion instructions
PLATFORMS = {"nucleo-f746zg": "nucleo_f746zg.repl", "stm32f746g-disco": "stm32f746g_disco.repl"}


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time (not on Windows): while pyrenode3 loads, it rewrites a file of the unpacked Renode, and
    another process, as with `pytest -n 2`, would read half of it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "renode.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


@functools.cache
def _load_pyrenode() -> Any:
    """Import pyrenode3, told where Renode is. Its import loads the .NET runtime, so it happens once in a process."""
    variable, path = find_renode()
    os.environ[variable] = str(path)
    os.environ.setdefault("PYRENODE_RUNTIME", "coreclr")
    # When its first emulation begins, Renode deletes the temporary files of emulators that it takes for dead: this
    # process gets a folder of its own, until it ends.
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tinytrain-renode-")
    atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)
    try:
        with _alone():
            return importlib.import_module("pyrenode3.wrappers")
    except (Exception, SystemExit) as error:  # whatever it meets: it parses what Renode prints, or even exits
        raise TargetUnavailable(f"pyrenode3 cannot load Renode ({variable}={path}): {error!r}") from None


@functools.cache
def _virtual_time(microseconds: int) -> Any:
    """Renode's TimeInterval; its namespace exists once pyrenode3 is loaded."""
    return importlib.import_module("Antmicro.Renode.Time").TimeInterval.FromMicroseconds(microseconds)


def _monitor_path(path: Path) -> str:
    """A path as the monitor reads it."""
    return "@" + str(path.absolute()).replace(" ", r"\ ")


def slices(microseconds: int) -> Iterator[int]:
    """SLICES_US, then the last of them over and over, until they sum to ``microseconds``."""
    passed = 0
    for length in itertools.chain(SLICES_US, itertools.repeat(SLICES_US[-1])):
        if passed >= microseconds:
            return
        yield length
        passed += length


class RenodeTarget(ProtocolTarget):
    """A board in Renode, from power-on. Raises TargetUnavailable without Renode."""

    _alive: RenodeTarget | None = None

    def __init__(self, elf: Path, *, board: str = DEFAULT_BOARD) -> None:
        if RenodeTarget._alive is not None:
            raise TargetError("Renode runs one emulation in a process: close the other RenodeTarget first")
        self.firmware = Firmware(elf)
        self.board = load_board(board)
        self._wrappers = _load_pyrenode()
        self._scratch = Path(tempfile.mkdtemp(prefix="tinytrain-uart-"))
        self._monitor = self._wrappers.Monitor()
        self._emulation = self._wrappers.Emulation()
        RenodeTarget._alive = self
        try:
            self._power_on(elf, PLATFORMS[board])
        except BaseException:
            self.close()
            raise
        super().__init__(_RenodePort(self))

    def _power_on(self, elf: Path, platform: str) -> None:
        self.execute('mach create "board"')
        self.execute("logLevel 3")  # errors only: the NVIC reports every cache line that is invalidated
        self.execute(f"machine LoadPlatformDescription {_monitor_path(platform_files() / platform)}")
        self.execute(f"sysbus LoadELF {_monitor_path(elf)}")
        self.execute(f"sysbus.cpu VectorTableOffset {self.board.memories['flash'].base:#x}")
        self.execute('emulation SetGlobalQuantum "0.001"')
        self.execute("emulation SetAdvanceImmediately true")  # as fast as it can, not paced to real time
        self._connect()
        for length in slices(BOOT_US):  # what arrives before the USART is on would be lost
            self.run_for(length)
            if self.waits:
                return
        raise TargetError("the firmware does not reach tt_usart_receive; what it has printed: " + repr(self.sent()))

    def _connect(self) -> None:
        """Find the objects, after power-on or after a snapshot was loaded; send the USART's output to a file."""
        machine = self._emulation.get_mach("board")
        self._sysbus = machine.sysbus.internal
        self._cpu = machine.sysbus.cpu.internal
        self._uart = getattr(machine.sysbus, self.board.wiring.usart).internal
        self._output = self._scratch / f"uart{len(list(self._scratch.iterdir()))}"
        self.execute(f"sysbus.{self.board.wiring.usart} CreateFileBackend {_monitor_path(self._output)} true")
        self._taken = 0

    def execute(self, command: str) -> str:
        """A command of Renode's monitor; returns what it prints. Raises TargetError with the monitor's words."""
        output, error = self._monitor.execute(command)
        if error:
            raise TargetError(f"Renode refuses `{command}`: {str(error).strip()}")
        return str(output)

    def run_for(self, microseconds: int) -> None:
        """Let virtual time pass."""
        # Not by the monitor: called thousands of times a virtual second.
        self._emulation.internal.RunFor(_virtual_time(microseconds))

    @property
    def waits(self) -> bool:
        """The firmware polls the USART, and has read all that was sent to it."""
        polls = self.firmware.function_name(int(self._cpu.PC.RawValue)) == "tt_usart_receive"
        return polls and str(self._uart.BufferState) == "Empty"

    def feed(self, data: bytes) -> None:
        for byte in data:
            self._uart.WriteChar(byte)

    def sent(self) -> bytes:
        """What the firmware has sent since the last call."""
        with self._output.open("rb") as file:
            file.seek(self._taken)
            data = file.read()
        self._taken += len(data)
        return data

    @property
    def instructions(self) -> int:
        """Instructions retired since power-on, those that polled the USART included."""
        return int(self._cpu.ExecutedInstructions)

    def read_memory(self, address: int, size: int) -> bytes:
        """Memory as the core sees it."""
        return bytes(self._sysbus.ReadBytes(address, size))

    def save_snapshot(self, path: Path) -> None:
        """The whole machine, between two requests, into a file of Renode's."""
        self.execute(f"Save {_monitor_path(path)}")

    def load_snapshot(self, path: Path) -> None:
        """Back to a snapshot of the same board."""
        self.execute(f"Load {_monitor_path(path)}")
        self.execute('mach set "board"')
        self._connect()

    def close(self) -> None:
        if RenodeTarget._alive is self:
            RenodeTarget._alive = None
            self._emulation.clear()
            shutil.rmtree(self._scratch, ignore_errors=True)


class _RenodePort:
    """The emulated USART: reading lets virtual time pass until there is something to read."""

    def __init__(self, target: RenodeTarget) -> None:
        self._target = target

    def write(self, data: bytes) -> None:
        self._target.feed(data)

    def read(self) -> bytes:
        waits = False
        for length in slices(PATIENCE_US):
            data = self._target.sent()
            if data:
                return data
            # Twice in a row: the first time it may be on its way out of tt_usart_receive with the last byte.
            waited, waits = waits, self._target.waits
            if waits and waited:
                raise TargetError("the firmware waits for input and has not answered")
            self._target.run_for(length)
        raise TargetError(f"the firmware has not answered within {PATIENCE_US / 1e6:g} s of virtual time")

    def close(self) -> None:
        """RenodeTarget.close does it all."""
