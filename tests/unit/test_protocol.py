"""Frames and messages: the C against PyPI cobs, zlib and struct; then the parser under fire."""

from __future__ import annotations

import ctypes
import math
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from cobs import cobs
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import images, toy_dir

from tinytrain_lite.board import firmware_dir
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.protocol import (
    REPLY,
    VERSION,
    DeviceFault,
    DeviceRefused,
    ErrorCode,
    Frame,
    LinkError,
    Message,
    ProtocolTarget,
    decode,
    encode,
)
from tinytrain_lite.toolchain import build_host_library

SIDE = 24  # 576 bytes of image: frames span several COBS blocks
PIXELS = SIDE * SIDE


class LinkPort:
    """A port whose device is the firmware's protocol, compiled into this process."""

    def __init__(self, host: HostTarget) -> None:
        self.host = host
        self.replies = b""

    def write(self, data: bytes) -> None:
        self.replies += self.host.link(data)

    def read(self) -> bytes:
        data, self.replies = self.replies, b""
        return data

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostTarget:
    return HostTarget(build_host_library(toy_dir(tmp_path_factory.mktemp("toy"), SIDE=SIDE)))


@pytest.fixture
def linked(host: HostTarget) -> ProtocolTarget:
    host.reset()
    target = ProtocolTarget(LinkPort(host))
    target.reset()
    return target


def test_python_and_c_hold_the_same_numbers() -> None:
    header = (firmware_dir() / "include" / "tt_protocol.h").read_text("utf-8")
    numbers = {name: int(value, 0) for name, value in re.findall(r"\bTT_(\w+) = (\w+)", header)}
    numbers.pop("OK")
    assert numbers.pop("PROTOCOL_VERSION") == VERSION
    assert numbers.pop("REPLY") == REPLY
    errors = {name.removeprefix("ERROR_"): value for name, value in numbers.items() if name.startswith("ERROR_")}
    messages = {name: value for name, value in numbers.items() if not name.startswith("ERROR_")}
    assert errors == {code.name: code.value for code in ErrorCode}
    assert messages == {message.name: message.value for message in Message}


def test_messages_carry_what_the_model_computes(host: HostTarget, linked: ProtocolTarget, tmp_path: Path) -> None:
    direct = HostTarget(build_host_library(toy_dir(tmp_path, SIDE=SIDE)))
    pictures, labels = images(20, SIDE)
    info = linked.hello()
    assert (info.name, info.board, info.digest, info.classes, info.params) == ("toy", "host", 0x12345678, 3, 3)
    assert info.image_shape == (SIDE, SIDE, 1)
    linked.set_learning_rate(0.03125)
    direct.set_learning_rate(0.03125)
    assert linked.train_many(pictures, labels).loss.tobytes() == direct.train_many(pictures, labels).loss.tobytes()
    for name, content in linked.read_params().items():
        assert content.tobytes() == direct.read_params()[name].tobytes()
    assert linked.infer(pictures[3]).logits.tobytes() == direct.infer(pictures[3]).logits.tobytes()
    assert linked.evaluate(pictures, labels) == direct.evaluate(pictures, labels)
    stats = linked.stats()
    assert (stats.steps, stats.evaluated, stats.learning_rate) == (20, 20, 0.03125)
    assert stats.correct == direct.stats().correct
    linked.reset()
    stats = linked.stats()
    assert (stats.steps, stats.evaluated, stats.correct) == (0, 0, 0)
    assert not linked.read_params()["weights"].any()


@settings(deadline=None)
@given(content=st.binary(max_size=1024), fill=st.integers(0, 255))
def test_c_encoder_against_pypi_cobs(host: HostTarget, content: bytes, fill: int) -> None:
    blob = content + bytes([fill]) * (1024 - len(content))  # long runs: COBS blocks of 254 and more
    param = host._model.params[2]
    assert param.name == b"blob"
    ctypes.memmove(param.data, blob, 1024)
    wire = host.link(encode(Frame(Message.READ_PARAMS, 7, struct.pack("<HIH", 2, 0, 1024))))
    body = struct.pack("<BBH", VERSION, Message.READ_PARAMS | REPLY, 7) + blob
    assert wire == cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


@settings(deadline=None)
@given(content=st.binary(max_size=PIXELS), fill=st.integers(0, 255))
def test_c_decoder_against_pypi_cobs(host: HostTarget, content: bytes, fill: int) -> None:
    image = content + bytes([fill]) * (PIXELS - len(content))
    assert decode(host.link(encode(Frame(Message.INFER, 9, image)))[:-1]).type == Message.INFER | REPLY
    assert ctypes.string_at(host._model.infer_input, PIXELS) == image


@pytest.mark.parametrize("rate", [-1.0, -1e-45, math.nan, math.inf, -math.inf])
def test_bad_learning_rate(linked: ProtocolTarget, rate: float) -> None:
    before = linked.stats()
    with pytest.raises(DeviceRefused) as error:
        linked.set_learning_rate(rate)
    assert error.value.code == ErrorCode.LEARNING_RATE
    assert linked.stats() == before


def test_bytes_lost_by_the_usart(host: HostTarget) -> None:
    wire = encode(Frame(Message.STATS, 5, b""))
    host.link(wire[:3])
    host._library.tt_host_link_overrun()
    reply = decode(host.link(wire[3:])[:-1])
    assert (reply.type, reply.sequence, reply.payload) == (Message.ERROR | REPLY, 5, bytes([ErrorCode.OVERRUN]))
    assert decode(host.link(wire)[:-1]).type == Message.STATS | REPLY


# ---- fuzzing ----


def expected_error(wire: bytes) -> ErrorCode | None:
    """What the firmware must answer to one frame, worked out with cobs, zlib and struct; None for a good one."""
    try:
        content = cobs.decode(wire)
    except cobs.DecodeError:
        return ErrorCode.FRAMING
    if len(content) < 8 or struct.pack("<I", zlib.crc32(content[:-4])) != content[-4:]:
        return ErrorCode.CRC
    version, kind, payload = content[0], content[1], content[4:-4]
    if version != VERSION:
        return ErrorCode.VERSION
    sizes = {1: 0, 2: PIXELS, 3: PIXELS + 2, 4: PIXELS + 2, 5: 4, 6: 0, 7: 2, 8: 8, 9: 0, 11: 0, 12: 0}
    if kind == Message.WRITE_PARAMS:
        count = struct.unpack_from("<H", payload, 6)[0] if len(payload) >= 8 else 0
        if len(payload) != 8 + count or count > PIXELS:
            return ErrorCode.LENGTH
    elif kind not in sizes:
        return ErrorCode.TYPE
    elif len(payload) != sizes[kind]:
        return ErrorCode.LENGTH
    if kind in (Message.TRAIN, Message.EVALUATE) and struct.unpack_from("<H", payload)[0] >= 3:
        return ErrorCode.LABEL
    if kind == Message.LEARNING_RATE:
        (rate,) = struct.unpack("<f", payload)
        return None if math.isfinite(rate) and rate >= 0 else ErrorCode.LEARNING_RATE
    if kind == Message.PARAM_INFO:
        return None if struct.unpack("<H", payload)[0] < 3 else ErrorCode.RANGE
    if kind in (Message.READ_PARAMS, Message.WRITE_PARAMS):
        index, offset, count = struct.unpack_from("<HIH", payload)
        if index >= 3 or offset + count > (3 * PIXELS * 4, 12, 1024)[index]:
            return ErrorCode.RANGE
    return None


def bad_wire(dice: random.Random) -> bytes:
    """One damaged or dishonest frame, without its closing zero; may hold zeros, and so be several."""
    kind = dice.randrange(1, 13)
    size = {2: PIXELS, 3: PIXELS + 2, 4: PIXELS + 2, 5: 4, 7: 2, 8: 8, 10: 8 + dice.randrange(40)}.get(kind, 0)
    payload = dice.randbytes(size)
    match dice.randrange(8):
        case 0:  # truncated
            wire = encode(Frame(kind, 1, payload))[:-1]
            return wire[: dice.randrange(1, len(wire))]
        case 1:  # bits flipped
            wire = bytearray(encode(Frame(kind, 1, payload))[:-1])
            for _ in range(dice.randrange(1, 4)):
                wire[dice.randrange(len(wire))] ^= 1 << dice.randrange(8)
            return bytes(wire)
        case 2:  # noise
            return dice.randbytes(dice.randrange(1, 40))
        case 3:  # too long, now and then far too long
            extra = dice.randrange(1, 10 if dice.random() < 0.99 else 10_000)
            return encode(Frame(kind, 1, payload + bytes(extra)))[:-1]
        case 4:  # too short, but honest about it
            return encode(Frame(kind, 1, payload[: dice.randrange(size)] if size else b"x"))[:-1]
        case 5:  # no such request
            return encode(Frame(dice.choice([0, *range(13, 256)]), 1, payload))[:-1]
        case 6:  # another version
            return encode(Frame(kind, 1, payload), version=dice.choice([0, *range(2, 256)]))[:-1]
        case _:  # well formed, and wrong
            content = dice.choice(
                [
                    (Message.TRAIN, struct.pack("<H", dice.randrange(3, 65536)) + bytes(PIXELS)),
                    (Message.EVALUATE, struct.pack("<H", dice.randrange(3, 65536)) + bytes(PIXELS)),
                    (Message.LEARNING_RATE, struct.pack("<f", dice.choice([-0.5, math.nan, math.inf, -math.inf]))),
                    (Message.PARAM_INFO, struct.pack("<H", dice.randrange(3, 65536))),
                    (Message.READ_PARAMS, struct.pack("<HIH", 1, dice.choice([13, 2**32 - 1]), dice.randrange(9))),
                    (Message.READ_PARAMS, struct.pack("<HIH", dice.randrange(3, 65536), 0, 0)),
                    (Message.WRITE_PARAMS, struct.pack("<HIH", 1, dice.choice([11, 2**32 - 1]), 2) + b"xy"),
                    (Message.WRITE_PARAMS, struct.pack("<HIH", dice.randrange(3, 65536), 0, 1) + b"x"),
                ]
            )
            return encode(Frame(content[0], 1, content[1]))[:-1]


def test_bad_frames_change_nothing(host: HostTarget, linked: ProtocolTarget) -> None:
    """100,000 frames and more: each is answered by the right error code, and no parameter, rate or count moves."""
    dice = random.Random(2)
    pictures, labels = images(8, SIDE)
    linked.set_learning_rate(0.125)
    linked.train_many(pictures, labels)
    linked.evaluate(pictures, labels)
    frames = 0
    seen: set[ErrorCode] = set()
    while frames < 100_000:
        wires, expected = [], []
        while len(wires) < 1000:
            wire = bad_wire(dice)
            codes = [expected_error(part) for part in wire.split(b"\0") if part]
            if None not in codes:  # a flip may have made a good frame of it
                wires.append(wire)
                expected += codes
        before = linked.stats(), {name: content.tobytes() for name, content in host.read_params().items()}
        replies = [decode(reply) for reply in host.link(b"\0".join(wires) + b"\0").split(b"\0")[:-1]]
        assert {reply.type for reply in replies} == {Message.ERROR | REPLY}
        assert [reply.payload[0] for reply in replies] == expected
        assert before == (linked.stats(), {name: content.tobytes() for name, content in host.read_params().items()})
        frames += len(expected)
        seen |= set(expected)
    assert seen == {code for code in ErrorCode if ErrorCode.FRAMING <= code <= ErrorCode.RANGE}
    assert linked.train(pictures[0], 1).loss > 0
    assert linked.stats().steps == 9


# ---- the Python end ----


class Canned:
    """A port that answers with given bytes."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def write(self, data: bytes) -> None:
        pass

    def read(self) -> bytes:
        if not self.answers:
            raise TargetError("no more answers")
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def test_reply_in_pieces_and_split_by_two_reads() -> None:
    wire = encode(Frame(Message.RESET | REPLY, 1, b""))
    ProtocolTarget(Canned(wire[:2], wire[2:5], wire[5:])).reset()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (encode(Frame(Message.RESET | REPLY, 2, b"")), "sequence 2"),
        (encode(Frame(Message.STATS | REPLY, 1, b"")), "type 0x86"),
        (encode(Frame(Message.RESET | REPLY, 1, b""), version=2), "version 2"),
        (b"\x05ab\0", "not a valid frame"),
        (b"\x03ab\0", "CRC"),
    ],
)
def test_wrong_replies_are_refused(answer: bytes, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        ProtocolTarget(Canned(answer)).reset()


def test_a_fault_line_becomes_an_error() -> None:
    with pytest.raises(DeviceFault, match="pc=0x08000a3c"):
        ProtocolTarget(Canned(b"\r\nHARDFAULT pc=0x08000a3c", b" lr=0x1\r\n")).reset()


def test_images_and_labels_are_checked_before_they_are_sent(linked: ProtocolTarget) -> None:
    picture = np.zeros((SIDE, SIDE, 1), np.int8)
    with pytest.raises(TargetError, match=r"shape \(24, 24, 1\), got int8 \(4, 4, 1\)"):
        linked.infer(np.zeros((4, 4, 1), np.int8))
    with pytest.raises(TargetError, match="got uint8"):
        linked.infer(picture.astype(np.uint8))
    with pytest.raises(TargetError, match="label 3"):
        linked.train(picture, 3)
    with pytest.raises(TargetError, match="as many images as labels"):
        linked.evaluate(picture[np.newaxis], [])
