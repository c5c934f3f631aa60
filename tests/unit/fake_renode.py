"""A stand-in for ``pyrenode3.wrappers``: understands the few commands that RenodeTarget gives, and lets Unicorn run.

It shows that the target's own logic works, and that it gives these commands in this order; what Renode makes of
them only Renode can show.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unicorn import arm_const

from tinytrain_lite.target.unicorn import UnicornTarget


class FakeRenode:
    """Both of pyrenode3's singletons, ``Monitor()`` and ``Emulation()``."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.board: Any = None
        self.output = Path()

    def Monitor(self) -> FakeRenode:  # noqa: N802
        return self

    def Emulation(self) -> FakeRenode:  # noqa: N802
        return self

    def execute(self, command: str) -> tuple[str, str]:
        self.commands.append(command)
        if match := re.fullmatch(r"sysbus LoadELF @(.*)", command):
            self.board = UnicornTarget(_path(match[1]))
        elif match := re.fullmatch(r"sysbus\.usart3 CreateFileBackend @(.*) true", command):
            self.output = _path(match[1])
            self.output.write_bytes(b"")
        elif not re.match(r"mach |logLevel |machine Load|sysbus\.cpu Vector|emulation Set", command):
            return "", f"No such command or device: {command}\n"
        return "", ""

    @property
    def internal(self) -> FakeRenode:
        return self

    def RunFor(self, microseconds: int) -> None:  # noqa: N802
        self.board.run()
        with self.output.open("ab") as file:
            file.write(self.board._machine.take())

    def get_mach(self, name: str) -> Any:
        assert name == "board"
        cpu, uart, sysbus = SimpleNamespace(internal=_Cpu(self)), SimpleNamespace(internal=_Uart(self)), _Bus(self)
        return SimpleNamespace(sysbus=SimpleNamespace(internal=sysbus, cpu=cpu, usart3=uart))

    def clear(self) -> None:
        self.board.close()


def _path(word: str) -> Path:
    assert re.fullmatch(r"(\\ |\S)+", word), "the monitor ends a path at a space"
    return Path(word.replace("\\ ", " "))


class _Cpu:
    def __init__(self, renode: FakeRenode) -> None:
        self._renode = renode

    @property
    def PC(self) -> Any:  # noqa: N802
        return SimpleNamespace(RawValue=self._renode.board._engine.reg_read(arm_const.UC_ARM_REG_PC))

    @property
    def ExecutedInstructions(self) -> int:  # noqa: N802
        return int(self._renode.board.instructions)


class _Uart:
    BufferState = "Empty"  # Unicorn runs until it has read everything

    def __init__(self, renode: FakeRenode) -> None:
        self._renode = renode

    def WriteChar(self, byte: int) -> None:  # noqa: N802
        self._renode.board._machine.feed(bytes([byte]))


class _Bus:
    def __init__(self, renode: FakeRenode) -> None:
        self._renode = renode

    def ReadBytes(self, address: int, count: int) -> bytes:  # noqa: N802
        return self._renode.board.read_memory(address, count)
