"""The targets by name: unicorn, renode, serial."""

from __future__ import annotations

from pathlib import Path

from tinytrain_lite.board import DEFAULT_BOARD
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.protocol import ProtocolTarget

TARGETS = ("unicorn", "renode", "serial")


class TargetUnavailable(TargetError):
    """The target needs something that is not here: Renode, or a board on a port. The message says how to get it."""


def check_target(name: str, port: str | None = None) -> None:
    """Raises TargetUnavailable if the target cannot be had on this computer, TargetError if there is no such target."""
    if name not in TARGETS:
        raise TargetError(f"unknown target '{name}'; choose one of {', '.join(TARGETS)}")
    if name == "renode":
        from tinytrain_lite.target.renode_home import find_renode

        find_renode()
    if name == "serial":
        from tinytrain_lite.target.serial import check_port

        check_port(port)


def open_target(name: str, elf: Path, *, board: str = DEFAULT_BOARD, port: str | None = None) -> ProtocolTarget:
    """A target that runs ``elf``, from power-on; on a board, the firmware that was flashed before, after RESET.

    Raises as ``check_target`` does, and TargetError if the firmware does not come up.
    """
    check_target(name, port)
    if name == "renode":
        from tinytrain_lite.target.renode import RenodeTarget

        return RenodeTarget(elf, board=board)
    if name == "serial":
        from tinytrain_lite.target.serial import SerialTarget

        assert port is not None
        return SerialTarget(port)
    from tinytrain_lite.target.unicorn import UnicornTarget

    return UnicornTarget(elf, board=board)
