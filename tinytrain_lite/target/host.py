"""The generated C as a shared library in this process: thousands of steps a second, the same bytes as the board.

    with HostTarget(build_host_library(model_dir)) as target:
        log = target.train_many(images, labels)

Batches go through one C call in chunks. ``link()`` speaks the framed protocol instead; tests use it to
put the firmware's parser under fire.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinytrain_lite.target.base import (
    Image,
    Inference,
    Labels,
    ModelInfo,
    Progress,
    Stats,
    Target,
    TargetError,
    TrainLog,
    TrainResult,
    check_image,
    check_label,
    check_params,
)
from tinytrain_lite.target.protocol import DeviceRefused, ErrorCode, Message

CHUNK = 256  # images a C call, so that progress can be shown


class _Param(ctypes.Structure):  # tt_param of tt_model.h
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint32))


class _Model(ctypes.Structure):  # tt_model of tt_model.h
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("digest", ctypes.c_uint32),
        ("height", ctypes.c_uint16),
        ("width", ctypes.c_uint16),
        ("channels", ctypes.c_uint16),
        ("classes", ctypes.c_uint16),
        ("arena_bytes", ctypes.c_uint32),
        ("infer_input", ctypes.c_void_p),
        ("train_input", ctypes.c_void_p),
        ("params", ctypes.POINTER(_Param)),
        ("param_count", ctypes.c_uint16),
        ("infer", ctypes.c_void_p),
        ("train_step", ctypes.c_void_p),
        ("reset", ctypes.CFUNCTYPE(None)),
        ("logits", ctypes.POINTER(ctypes.c_float)),
        ("loss", ctypes.POINTER(ctypes.c_float)),
        ("learning_rate", ctypes.POINTER(ctypes.c_float)),
        ("steps", ctypes.POINTER(ctypes.c_uint32)),
    )


class HostTarget(Target):
    """A model inside this process. Each target has a private copy of the library, and so a state of its own."""

    def __init__(self, library: Path) -> None:
        # dlopen gives the same instance for the same file; a copy has its own variables.
        descriptor, self._copy = tempfile.mkstemp(suffix=library.suffix)
        os.close(descriptor)
        shutil.copyfile(library, self._copy)
        self._library = ctypes.CDLL(self._copy)
        os.unlink(self._copy)
        pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
        self._library.tt_host_model.restype = ctypes.POINTER(_Model)
        self._library.tt_host_infer.argtypes = [pointer, u32, pointer, pointer]
        self._library.tt_host_infer.restype = None
        self._library.tt_host_train.argtypes = [pointer, pointer, u32, pointer, pointer]
        self._library.tt_host_train.restype = None
        self._library.tt_host_link.argtypes = [ctypes.c_char_p, u32, pointer, u32]
        self._library.tt_host_link.restype = u32
        for store in (self._library.tt_host_save, self._library.tt_host_load):
            store.restype, store.argtypes = u32, [ctypes.POINTER(u32)]
        self._model: _Model = self._library.tt_host_model().contents
        self._model.reset()  # as the firmware does at boot
        self._evaluated = self._correct = 0
        model = self._model
        self._info = ModelInfo(
            name=model.name.decode(), board="host", digest=model.digest, height=model.height, width=model.width,
            channels=model.channels, classes=model.classes, arena_bytes=model.arena_bytes, data_bytes=0, bss_bytes=0,
            stack_bytes=0, clock_hz=0, params=model.param_count,
        )  # fmt: skip

    def hello(self) -> ModelInfo:
        return self._info

    def infer(self, image: Image) -> Inference:
        batch = check_image(image, self._info)
        predicted = np.empty(1, np.uint16)
        self._library.tt_host_infer(batch.ctypes.data, 1, predicted.ctypes.data, None)
        logits = np.ctypeslib.as_array(self._model.logits, (self._info.classes,)).copy()
        return Inference(int(predicted[0]), logits, 0)

    def logits(self, images: Image) -> NDArray[np.float32]:
        """Logits (N, classes) of int8 images (N, height, width, channels)."""
        batch = self._batch(images)
        predicted = np.empty(len(batch), np.uint16)
        logits = np.empty((len(batch), self._info.classes), np.float32)
        self._library.tt_host_infer(batch.ctypes.data, len(batch), predicted.ctypes.data, logits.ctypes.data)
        return logits

    def train(self, image: Image, label: int) -> TrainResult:
        log = self.train_many(image[np.newaxis], [label])
        return TrainResult(float(log.loss[0]), int(log.predicted[0]), 0)

    def train_many(self, images: Image, labels: Labels, progress: Progress | None = None) -> TrainLog:
        self._check_batch(images, labels)
        batch = self._batch(images)
        wanted = np.array([check_label(int(label), self._info) for label in labels], np.uint16)
        loss, predicted = np.empty(len(batch), np.float32), np.empty(len(batch), np.uint16)
        for start in range(0, len(batch), CHUNK):
            part = slice(start, min(start + CHUNK, len(batch)))
            self._library.tt_host_train(
                batch[part].ctypes.data, wanted[part].ctypes.data, part.stop - start,
                loss[part].ctypes.data, predicted[part].ctypes.data,
            )  # fmt: skip
            if progress:
                progress(part.stop - start)
        return TrainLog(loss, predicted, np.zeros(len(batch), np.uint32))

    def predict(self, image: Image, label: int) -> int:
        check_label(label, self._info)
        predicted = self.infer(image).predicted
        self._evaluated += 1
        self._correct += predicted == label
        return predicted

    def evaluate(self, images: Image, labels: Labels, progress: Progress | None = None) -> float:
        self._check_batch(images, labels)
        wanted = np.array([check_label(int(label), self._info) for label in labels], np.uint16)
        correct = int(np.count_nonzero(self.classify(images, progress) == wanted))
        self._evaluated += len(wanted)
        self._correct += correct
        return correct / len(wanted)

    def classify(self, images: Image, progress: Progress | None = None) -> NDArray[np.uint16]:
        """Predicted class (N,) of int8 images (N, height, width, channels); what `stats` counts stays as it is."""
        batch = self._batch(images)
        predicted = np.empty(len(batch), np.uint16)
        for start in range(0, len(batch), CHUNK):
            part = slice(start, min(start + CHUNK, len(batch)))
            self._library.tt_host_infer(batch[part].ctypes.data, part.stop - start, predicted[part].ctypes.data, None)
            if progress:
                progress(part.stop - start)
        return predicted

    def set_learning_rate(self, rate: float) -> None:
        if not 0 <= rate <= float(np.finfo(np.float32).max):
            raise TargetError(f"the learning rate must be finite and not negative, got {rate}")
        self._model.learning_rate[0] = rate

    def stats(self) -> Stats:
        model = self._model
        return Stats(
            model.steps[0], self._evaluated, self._correct, 0, 0, 0, float(model.loss[0]), float(model.learning_rate[0])
        )

    def read_params(self) -> dict[str, NDArray[np.uint8]]:
        params = (self._model.params[index] for index in range(self._model.param_count))
        return {
            param.name.decode(): np.frombuffer(ctypes.string_at(param.data, param.bytes), np.uint8) for param in params
        }

    def write_params(self, params: Mapping[str, NDArray[np.uint8]]) -> None:
        for index, content in check_params(params, self.read_params()):
            ctypes.memmove(self._model.params[index].data, content, len(content))

    def save(self) -> int:
        return self._store(Message.SAVE, self._library.tt_host_save)

    def load(self) -> int:
        return self._store(Message.LOAD, self._library.tt_host_load)

    def _store(self, message: Message, act: Callable[[object], int]) -> int:
        sequence = ctypes.c_uint32()
        error = act(ctypes.byref(sequence))
        if error:
            raise DeviceRefused(message, ErrorCode(error))
        return sequence.value

    def reset(self) -> None:
        self._model.reset()
        self._evaluated = self._correct = 0

    def link(self, data: bytes) -> bytes:
        """Feed bytes to the firmware's protocol; returns what it sends back. Keeps its own evaluation counts."""
        replies = ctypes.create_string_buffer(1 << 16)
        used = self._library.tt_host_link(data, len(data), replies, len(replies))
        if used > len(replies):
            raise TargetError(f"the replies need {used} bytes, more than {len(replies)}: feed fewer requests at once")
        return replies.raw[:used]

    def close(self) -> None:
        """Nothing to do: the library goes with the process. (Unloading would pull code from under live pointers.)"""

    def _batch(self, images: Image) -> Image:
        array = np.ascontiguousarray(images)
        check_image(array[0], self._info)
        return array
