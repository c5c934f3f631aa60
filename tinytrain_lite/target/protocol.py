"""The host's end of the link: frames, messages and a target that lives behind a stream of bytes.

Frames and payloads are described in ``firmware/include/tt_protocol.h``, which holds the same numbers; a test
compares the two. ``ProtocolTarget`` needs only a ``Port``: an emulated USART, or a serial line.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from cobs import cobs
from numpy.typing import NDArray

from tinytrain_lite.target.base import (
    Image,
    Inference,
    ModelInfo,
    Stats,
    Target,
    TargetError,
    TrainResult,
    check_image,
    check_label,
    check_params,
)

VERSION = 1
REPLY = 0x80
READ_CHUNK = 4096  # bytes of a parameter asked for in one frame


class Message(enum.IntEnum):
    HELLO = 1
    INFER = 2
    TRAIN = 3
    EVALUATE = 4
    LEARNING_RATE = 5
    STATS = 6
    PARAM_INFO = 7
    READ_PARAMS = 8
    RESET = 9
    WRITE_PARAMS = 10
    SAVE = 11
    LOAD = 12
    ERROR = 0x7F


class ErrorCode(enum.IntEnum):
    OVERRUN = 1
    FRAMING = 2
    CRC = 3
    VERSION = 4
    TYPE = 5
    LENGTH = 6
    LABEL = 7
    LEARNING_RATE = 8
    RANGE = 9
    NO_SAVE = 10
    ROOM = 11
    FLASH = 12


EXPLANATION = {
    ErrorCode.OVERRUN: "the device lost bytes of the request: lower the baud rate, or send again",
    ErrorCode.FRAMING: "the request was damaged on the way: send again",
    ErrorCode.CRC: "the request was damaged on the way: send again",
    ErrorCode.VERSION: f"the firmware speaks another protocol version than {VERSION}: rebuild and flash it",
    ErrorCode.TYPE: "the firmware does not know this request: rebuild and flash it",
    ErrorCode.LENGTH: "the payload has the wrong size for this model",
    ErrorCode.LABEL: "the label is not one of the model's classes",
    ErrorCode.LEARNING_RATE: "the learning rate must be finite and not negative",
    ErrorCode.RANGE: "no such parameter, or bytes beyond its end",
    ErrorCode.NO_SAVE: "flash holds no good copy of this very model: save one first",
    ErrorCode.ROOM: "trained parameters and state are larger than a slot of the flash: train less of the network",
    ErrorCode.FLASH: "flash did not take what was written (worn out, or write-protected); the older copy is kept",
}


class DeviceRefused(TargetError):
    """The device answered with an error code and changed nothing. ``code`` is an ErrorCode."""

    def __init__(self, request: Message, code: ErrorCode) -> None:
        super().__init__(f"{request.name} was refused ({code.name}): {EXPLANATION[code]}")
        self.code = code


class DeviceFault(TargetError):
    """The device hit a fault and printed its registers; it needs a reset."""


class LinkError(TargetError):
    """What came back is not a valid reply."""


class Frame(NamedTuple):
    type: int  # replies have REPLY set
    sequence: int
    payload: bytes


def encode(frame: Frame, version: int = VERSION) -> bytes:
    """The bytes of a frame on the wire, its closing zero included."""
    body = struct.pack("<BBH", version, frame.type, frame.sequence) + frame.payload
    return cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def decode(wire: bytes) -> Frame:
    """A frame from its bytes, without the closing zero. Raises LinkError, saying what is wrong with them."""
    try:
        content = cobs.decode(wire)
    except cobs.DecodeError as error:
        raise LinkError(f"a reply is not a valid frame: {error}") from None
    if len(content) < 8 or zlib.crc32(content[:-4]) != struct.unpack("<I", content[-4:])[0]:
        raise LinkError("a reply was damaged on the way (CRC)")
    version, kind, sequence = struct.unpack_from("<BBH", content)
    if version != VERSION:
        raise LinkError(f"the device speaks protocol version {version}, this program {VERSION}: rebuild the firmware")
    return Frame(kind, sequence, content[4:-4])


class Port(Protocol):
    """A stream of bytes to and from the device."""

    def write(self, data: bytes) -> None: ...

    def read(self) -> bytes:
        """At least one byte. Raises TargetError when none will come."""
        ...

    def close(self) -> None: ...


_HELLO = struct.Struct("<IHHHHIIIIIH")
_STATS = struct.Struct("<IIIIIIff")


class ProtocolTarget(Target):
    """A target reached through a ``Port``."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._sequence = 0
        self._received = bytearray()
        self._info: ModelInfo | None = None

    def request(self, message: Message, payload: bytes = b"") -> bytes:
        """Send one request, wait for its reply, return the reply's payload.

        Raises DeviceRefused for an error code, DeviceFault when the device printed a fault, LinkError for
        anything that is not this request's reply.
        """
        self._sequence = (self._sequence + 1) & 0xFFFF
        reply = self.exchange(encode(Frame(message, self._sequence, payload)))
        if reply.type == Message.ERROR | REPLY:
            raise DeviceRefused(message, ErrorCode(reply.payload[0]))
        if (reply.type, reply.sequence) != (message | REPLY, self._sequence):
            raise LinkError(
                f"expected the reply to {message.name} {self._sequence}, "
                f"got type {reply.type:#x} sequence {reply.sequence}"
            )
        return reply.payload

    def exchange(self, wire: bytes) -> Frame:
        """Send these very bytes, be they a good frame or not, and return what is answered."""
        self._port.write(wire)
        return decode(self._read_frame())

    def _read_frame(self) -> bytes:
        while (end := self._received.find(0)) < 0:
            start = self._received.find(b"HARDFAULT")
            if start >= 0 and (stop := self._received.find(b"\n", start)) >= 0:
                raise DeviceFault(self._received[start:stop].decode("ascii", "replace").strip())
            self._received += self._port.read()
        wire = bytes(self._received[:end])
        del self._received[: end + 1]
        return wire

    def hello(self) -> ModelInfo:
        if self._info is None:
            payload = self.request(Message.HELLO)
            board, rest = _string(payload[_HELLO.size :])
            name, _ = _string(rest)
            self._info = ModelInfo(name, board, *_HELLO.unpack_from(payload))
        return self._info

    def infer(self, image: Image) -> Inference:
        payload = self.request(Message.INFER, check_image(image, self.hello()).tobytes())
        predicted, cycles = struct.unpack_from("<HI", payload)
        return Inference(predicted, np.frombuffer(payload, "<f4", offset=6).astype(np.float32), cycles)

    def train(self, image: Image, label: int) -> TrainResult:
        loss, predicted, cycles = struct.unpack("<fHI", self.request(Message.TRAIN, self._labelled(image, label)))
        return TrainResult(loss, predicted, cycles)

    def predict(self, image: Image, label: int) -> int:
        predicted, _ = struct.unpack("<HI", self.request(Message.EVALUATE, self._labelled(image, label)))
        return int(predicted)

    def _labelled(self, image: Image, label: int) -> bytes:
        info = self.hello()
        return struct.pack("<H", check_label(label, info)) + check_image(image, info).tobytes()

    def set_learning_rate(self, rate: float) -> None:
        self.request(Message.LEARNING_RATE, struct.pack("<f", rate))

    def stats(self) -> Stats:
        return Stats(*_STATS.unpack(self.request(Message.STATS)))

    def read_params(self) -> dict[str, NDArray[np.uint8]]:
        params = {}
        for index in range(self.hello().params):
            payload = self.request(Message.PARAM_INFO, struct.pack("<H", index))
            (size,) = struct.unpack_from("<I", payload)
            name, _ = _string(payload[4:])
            content = b"".join(
                self.request(Message.READ_PARAMS, struct.pack("<HIH", index, start, min(READ_CHUNK, size - start)))
                for start in range(0, size, READ_CHUNK)
            )
            params[name] = np.frombuffer(content, np.uint8)
        return params

    def write_params(self, params: Mapping[str, NDArray[np.uint8]]) -> None:
        height, width, channels = self.hello().image_shape
        chunk = min(READ_CHUNK, height * width * channels)  # the device collects a frame in its input tensor
        for index, content in check_params(params, self.read_params()):
            for start in range(0, len(content), chunk):
                part = content[start : start + chunk]
                self.request(Message.WRITE_PARAMS, struct.pack("<HIH", index, start, len(part)) + part)

    def save(self) -> int:
        return int.from_bytes(self.request(Message.SAVE), "little")

    def load(self) -> int:
        return int.from_bytes(self.request(Message.LOAD), "little")

    def reset(self) -> None:
        self.request(Message.RESET)

    def close(self) -> None:
        self._port.close()


def _string(data: bytes) -> tuple[str, bytes]:
    """A length-prefixed string and what follows it."""
    return data[1 : 1 + data[0]].decode("utf-8", "replace"), data[1 + data[0] :]
