"""A physical board behind a serial port: the ST-LINK's virtual COM port.

    with SerialTarget("/dev/ttyACM0") as target:
        target.train(image, label).cycles     # core cycles, from the DWT

The firmware must have been flashed before (`tinytrain flash`). ``pip install pyserial``.
"""

from __future__ import annotations

import time
from typing import Any

from tinytrain_lite.board import load_board
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.choose import TargetUnavailable
from tinytrain_lite.target.protocol import ProtocolTarget

REPLY_SECONDS = 60.0  # the longest request: SAVE erases 128 KB, which takes up to 2 s; a slow model's step
POLL_SECONDS = 0.2


def serial_ports() -> list[str]:
    """``device (description)`` of every port of this computer."""
    from serial.tools import list_ports

    return [f"{port.device} ({port.description})" for port in list_ports.comports()]


def check_port(port: str | None) -> None:
    """Raises TargetUnavailable, listing the ports there are, if ``port`` is not given or pyserial is missing."""
    try:
        known = ", ".join(serial_ports()) or "none"
    except ImportError:
        raise TargetUnavailable("pyserial is not installed: pip install pyserial") from None
    if not port:
        raise TargetUnavailable(f"no serial port was named (--port, or --variable PORT:...); ports here: {known}")


class SerialPort:
    """Bytes to and from a port. ``link`` is what ``serial.serial_for_url`` returns."""

    def __init__(self, link: Any, patience: float = REPLY_SECONDS) -> None:
        self._link, self._patience = link, patience
        link.timeout = POLL_SECONDS

    def write(self, data: bytes) -> None:
        self._link.write(data)

    def read(self) -> bytes:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            data = self._link.read(max(1, self._link.in_waiting))
            if data:
                return bytes(data)
        raise TargetError(
            f"the board has not answered for {self._patience:g} s: is the firmware flashed (tinytrain flash), "
            "is it the right port, and does no other program hold it?"
        )

    def close(self) -> None:
        self._link.close()


class SerialTarget(ProtocolTarget):
    """A board. ``port``: a device, or a URL of pyserial's such as ``socket://host:3456``."""

    def __init__(self, port: str) -> None:
        check_port(port)
        import serial

        try:
            link = serial.serial_for_url(port, baudrate=load_board().baud)
        except (serial.SerialException, OSError, ValueError) as error:
            known = ", ".join(serial_ports()) or "none"
            raise TargetUnavailable(f"cannot open {port}: {error}; ports here: {known}") from None
        link.reset_input_buffer()  # whatever a run before has left
        link.write(b"\0")  # ends a frame that a run before has begun; the firmware answers it with an error, if at all
        time.sleep(POLL_SECONDS)
        link.reset_input_buffer()
        super().__init__(SerialPort(link))
        self.reset()
