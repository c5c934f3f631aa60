"""Renode: platform files against the board description, finding and installing it; where it is, the machine."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_renode import FakeRenode
from toy import images, toy_dir

from tinytrain_lite.board import load_board
from tinytrain_lite.target import renode as renode_target
from tinytrain_lite.target import renode_home
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.choose import TargetUnavailable, check_target, open_target
from tinytrain_lite.target.protocol import DeviceFault, Frame, Message, encode
from tinytrain_lite.target.renode import SLICES_US, RenodeTarget, slices
from tinytrain_lite.target.renode_home import Release, SetupError, find_renode, platform_files, setup_renode
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.toolchain import build_firmware

CHIP = (platform_files() / "stm32f746.repl").read_text("utf-8")
VARIABLES = ("RENODE_ROOT", "PYRENODE_BIN", "PYRENODE_BUILD_DIR", "PYRENODE_PKG")


# ---- the platform ----


def blocks(text: str) -> dict[str, str]:
    """{name: its text} of the entries of a .repl file."""
    found = re.split(r"^(\w+):", re.sub(r"^//.*\n", "", text, flags=re.M), flags=re.M)
    return dict(zip(found[1::2], found[2::2], strict=True))


def addresses(block: str) -> list[int]:
    return [int(address, 16) for address in re.findall(r"sysbus <?(0x[0-9A-F]+)", block)]


def test_memories_are_those_of_the_board_description() -> None:
    board, entries = load_board(), blocks(CHIP)
    memories = {name: text for name, text in entries.items() if "MappedMemory" in text}
    assert set(memories) == {region.alias_of or name for name, region in board.memories.items()}
    for name, text in memories.items():
        size = re.search(r"^ +size: (0x[0-9A-F]+)$", text, re.M)
        assert size and int(size[1], 16) == board.memories[name].bytes
        bases = {r.base for r in board.memories.values() if name in (r.name, r.alias_of)}
        assert set(addresses(text)) == bases


def test_peripherals_are_those_of_the_board_description() -> None:
    board, entries = load_board(), blocks(CHIP)
    renamed = {"scs": "nvic"}
    for name, region in board.peripherals.items():
        assert addresses(entries[renamed.get(name, name)]) == [region.base], name
    for usart in ("usart1", "usart3"):
        assert f"frequency: {board.clock_hz}\n" in entries[usart]


def test_an_instruction_is_one_tick_of_cyccnt() -> None:
    entries = blocks(CHIP)
    assert "PerformanceInMips: 200\n" in entries["cpu"]
    assert "frequency: 200000000\n" in entries["dwt"] and "systickFrequency: 200000000\n" in entries["nvic"]


def test_no_network_at_load() -> None:
    for path in platform_files().iterdir():
        if path.suffix in (".repl", ".resc"):
            assert not re.search(r"https?://|ApplySVD", path.read_text("utf-8")), path


@pytest.mark.parametrize("board", ["nucleo-f746zg", "stm32f746g-disco"])
def test_every_board_has_its_platform_and_script(board: str) -> None:
    stem = board.replace("-", "_")
    assert 'using "./stm32f746.repl"' in (platform_files() / f"{stem}.repl").read_text("utf-8")
    script = (platform_files() / f"{stem}.resc").read_text("utf-8")
    usart = load_board(board).wiring.usart
    assert f"showAnalyzer {usart}\n" in script and f"connector Connect {usart} link\n" in script


def test_nucleo_leds_and_button() -> None:
    """UM1974, "LEDs" and "Push-buttons"."""
    entries = blocks((platform_files() / "nucleo_f746zg.repl").read_text("utf-8"))
    pins = {name: re.search(r"@ (gpio\w) (\d+)", text) for name, text in entries.items() if "@ gpio" in text}
    assert {name: match.groups() for name, match in pins.items() if match} == {
        "GreenLED": ("gpiob", "0"),
        "BlueLED": ("gpiob", "7"),
        "RedLED": ("gpiob", "14"),
        "UserButton1": ("gpioc", "13"),
    }


def test_uart_suite_sends_what_the_protocol_encodes() -> None:
    suite = (platform_files() / "uart.robot").read_text("utf-8")
    line = re.search(r"^@\{HELLO\} +(.*)$", suite, re.M)
    assert line and bytes(int(byte, 16) for byte in line[1].split()) == encode(Frame(Message.HELLO, 1, b""))


def test_flash_controller_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python peripheral, run here as IronPython runs it: one scope, the script again for every access."""
    script = re.search(r"script: '''\n(.*?)'''", CHIP, re.S)
    assert script
    flash = bytearray(2**20)

    class Memory:
        def SetRange(self, start: int, count: int, value: int) -> None:  # noqa: N802
            flash[start : start + count] = bytes([value]) * count

    class Request:
        IsInit = IsRead = IsWrite = False
        Offset = Value = 0

    class Peripheral:
        def GetMachine(self) -> dict[str, Memory]:  # noqa: N802
            return {"sysbus.flash": Memory()}

    class System:
        Byte = int

    scope: dict[str, Any] = {"self": Peripheral(), "System": System}

    def access(kind: str, offset: int = 0, value: int = 0) -> int:
        request = Request()
        setattr(request, kind, True)
        request.Offset, request.Value = offset, value
        scope["request"] = request
        exec(compile(script[1], "flash_interface", "exec"), scope)
        return request.Value

    access("IsInit")
    assert access("IsRead", 0x10) == 0x80000000
    access("IsWrite", 0x10, 0x10002 | 4 << 3)
    assert not any(flash), "locked"
    access("IsWrite", 0x04, 0x45670123)
    access("IsWrite", 0x04, 0xCDEF89AB)
    access("IsWrite", 0x10, 2 | 4 << 3)
    access("IsWrite", 0x10, 0x10002 | 4 << 3)
    assert flash == bytes(0x20000) + b"\xff" * 0x20000 + bytes(0xC0000)
    for sector, size in enumerate(load_board().flash_sectors):
        flash[:] = bytes(2**20)
        access("IsWrite", 0x10, 0x10002 | sector << 3)
        start = sum(load_board().flash_sectors[:sector])
        assert flash == bytes(start) + b"\xff" * size + bytes(2**20 - start - size)
    access("IsWrite", 0x10, 2 | 4 << 3)
    assert access("IsRead", 0x0C) == 0 and access("IsRead", 0x10) == 2 | 4 << 3
    access("IsWrite", 0x10, 0x10002 | 9 << 3)
    assert access("IsRead", 0x0C) == 0x80
    access("IsWrite", 0x0C, 0xF3)
    access("IsWrite", 0x10, 0x80000000)
    assert (access("IsRead", 0x0C), access("IsRead", 0x10)) == (0, 0x80000000)
    access("IsWrite", 0x04, 0xCDEF89AB)
    access("IsWrite", 0x04, 0x45670123)
    access("IsWrite", 0x04, 0xCDEF89AB)
    assert access("IsRead", 0x10) == 0x80000000, "a wrong key locks until reset"
    kept = {name: value for name, value in scope.items() if name not in ("self", "System", "request", "__builtins__")}
    assert all(type(value) is int and -(2**31) <= value < 2**31 for value in kept.values()), "for snapshots"


# ---- finding and installing ----


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Renode anywhere, an empty cache, pyrenode3 present."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINYTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(renode_home.importlib.util, "find_spec", lambda name: object())
    return tmp_path


def portable(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "renode").write_text("")
    (folder / "renode").chmod(0o755)
    (folder / "libcoreclr.so").write_text("")
    return folder / "renode"


def test_nothing_there(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetUnavailable, match="tinytrain setup renode"):
        find_renode()
    with pytest.raises(TargetUnavailable, match="tinytrain setup renode"):
        open_target("renode", elsewhere / "any.elf")
    monkeypatch.setattr(renode_home.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetUnavailable, match="pyrenode3 is not installed"):
        find_renode()


def test_the_order_of_places(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renode_home.platform, "system", lambda: "Linux")
    on_path = portable(elsewhere / "somewhere")
    (elsewhere / "bin").mkdir()
    (elsewhere / "bin" / "renode").symlink_to(on_path)
    assert find_renode() == ("PYRENODE_BIN", on_path)
    installed = portable(elsewhere / "cache" / "renode-1.16.1")
    assert find_renode() == ("PYRENODE_BIN", installed)
    built = elsewhere / "tree"
    (built / "output" / "bin" / "Release").mkdir(parents=True)
    monkeypatch.setenv("RENODE_ROOT", str(built))
    assert find_renode() == ("PYRENODE_BUILD_DIR", built)
    monkeypatch.setenv("RENODE_ROOT", str(elsewhere / "bin"))
    with pytest.raises(TargetUnavailable, match="neither a portable Renode nor a built source tree"):
        find_renode()
    monkeypatch.setenv("PYRENODE_PKG", str(elsewhere / "gone.pkg.tar.xz"))
    with pytest.raises(TargetUnavailable, match="PYRENODE_PKG is .*does not exist"):
        find_renode()


def pinned(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """Pin ``content`` as the release of this computer; returns the place of a download made by hand."""
    monkeypatch.setattr(renode_home.platform, "system", lambda: "Linux")
    monkeypatch.setattr(renode_home.platform, "machine", lambda: "x86_64")
    release = Release("renode.tar.gz", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(renode_home.RELEASES, ("Linux", "x86_64"), release)

    def offline(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    (elsewhere / "cache" / "downloads").mkdir(parents=True)
    return elsewhere / "cache" / "downloads" / "renode.tar.gz"


def test_setup_without_network_says_what_to_put_where(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = pinned(elsewhere, monkeypatch, b"")
    words = rf"cannot download https://github.com/renode/renode/releases/.*/renode.tar.gz .*put it at {place}"
    with pytest.raises(SetupError, match=words):
        setup_renode(lambda text: None, lambda done, total: None)
    assert not any(place.parent.iterdir()), "no half of a download stays"


def test_setup_from_a_download_made_by_hand(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portable(elsewhere / "renode_1.16.1-dotnet_portable")
    bundle = io.BytesIO()
    with tarfile.open(fileobj=bundle, mode="w:gz") as archive:
        archive.add(elsewhere / "renode_1.16.1-dotnet_portable", "renode_1.16.1-dotnet_portable")
    place = pinned(elsewhere, monkeypatch, bundle.getvalue())
    place.write_bytes(bundle.getvalue() + b"x")
    with pytest.raises(SetupError, match="is not Renode 1.16.1: its SHA-256 is"):
        setup_renode(lambda text: None, lambda done, total: None)
    place.write_bytes(bundle.getvalue())
    assert setup_renode(lambda text: None, lambda done, total: None) == elsewhere / "cache" / "renode-1.16.1"
    assert find_renode() == ("PYRENODE_BIN", elsewhere / "cache" / "renode-1.16.1" / "renode")


def test_an_unknown_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renode_home.platform, "machine", lambda: "sparc64")
    with pytest.raises(SetupError, match="sparc64.*RENODE_ROOT"):
        setup_renode(lambda text: None, lambda done, total: None)


# ---- the target's own logic ----


def test_the_target_drives_the_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRenode()
    monkeypatch.setattr(renode_target, "_load_pyrenode", lambda: fake)
    monkeypatch.setattr(renode_target, "_virtual_time", lambda microseconds: microseconds)
    elf = Path(shutil.copy(build_firmware(toy_dir(tmp_path)), tmp_path / "a b.elf"))
    pictures, labels = images(3)
    with RenodeTarget(elf) as target, UnicornTarget(elf) as unicorn:
        assert target.hello().board == "nucleo-f746zg"
        assert target.train_many(pictures, labels).loss.tobytes() == unicorn.train_many(pictures, labels).loss.tobytes()
        assert target.read_memory(0x08000000, 8) == unicorn.read_memory(0x08000000, 8)
        assert target.instructions == fake.board.instructions > 10_000
        with pytest.raises(TargetError, match="one emulation in a process"):
            RenodeTarget(elf)
        with pytest.raises(TargetError, match="Renode refuses `nonsense`: No such command"):
            target.execute("nonsense")
    order = [command.split(" @")[0] for command in fake.commands]
    assert order.index("machine LoadPlatformDescription") < order.index("sysbus LoadELF")
    assert order.index("sysbus LoadELF") < order.index("sysbus.cpu VectorTableOffset 0x8000000")
    with RenodeTarget(elf) as again:
        assert again.stats().steps == 0


@pytest.mark.parametrize("trouble", [ImportError("no mono"), AttributeError("group"), SystemExit(1)])
def test_a_renode_that_does_not_load(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException) -> None:
    def refuse(name: str) -> None:
        raise trouble

    monkeypatch.setenv("PYRENODE_BIN", str(portable(elsewhere / "broken")))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr(renode_target.importlib, "import_module", refuse)
    with pytest.raises(TargetUnavailable, match=r"cannot load Renode \(PYRENODE_BIN=.*broken/renode\): \w+\("):
        renode_target._load_pyrenode.__wrapped__()


def silent_firmware(tmp_path: Path) -> Path:
    """Boots, and switches its USART off."""
    source = Path(__file__).parents[1] / "robot" / "zoo" / "model.c"
    (tmp_path / "silent").mkdir()
    (tmp_path / "silent" / "model.c").write_text("#define ZOO_SILENT_UART\n" + source.read_text("utf-8"), "utf-8")
    return build_firmware(tmp_path / "silent")


def test_silence_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renode_target, "_load_pyrenode", FakeRenode)
    monkeypatch.setattr(renode_target, "_virtual_time", lambda microseconds: microseconds)
    with (
        RenodeTarget(silent_firmware(tmp_path)) as target,
        pytest.raises(TargetError, match="waits for input and has not answered"),
    ):
        target.hello()


def test_slices_grow_and_sum_to_the_patience() -> None:
    assert list(slices(2000)) == [50, 100, 200, 400, 400, 400, 400, 400]


# ---- the machine, where Renode is ----


@pytest.fixture
def renode(tmp_path: Path) -> Any:
    try:
        check_target("renode")
    except TargetUnavailable as error:
        pytest.skip(f"no Renode: {error}")
    return open_target("renode", build_firmware(toy_dir(tmp_path)))


def test_same_bytes_and_the_same_count_as_unicorn(renode: Any, tmp_path: Path) -> None:
    pictures, labels = images(20)
    with renode, UnicornTarget(build_firmware(toy_dir(tmp_path))) as unicorn:
        here, there = unicorn.train_many(pictures, labels), renode.train_many(pictures, labels)
        assert here.loss.tobytes() == there.loss.tobytes()
        np.testing.assert_array_equal(here.cycles, there.cycles)  # CYCCNT around the step: no USART in it
        before = np.array([unicorn.instructions, renode.instructions])
        assert unicorn.train(pictures[0], 0) == renode.train(pictures[0], 0)
        spent, polled = np.array([unicorn.instructions, renode.instructions]) - before
        assert spent < polled <= spent + 200 * SLICES_US[0]  # polls until the end of the time slice
        expected = unicorn.read_params()
        assert all(expected[name].tobytes() == content.tobytes() for name, content in renode.read_params().items())
        assert renode.stats().stack_used == unicorn.stats().stack_used
        assert renode.save() == renode.load() == 1


def test_snapshot(renode: Any, tmp_path: Path) -> None:
    pictures, labels = images(4)
    with renode:
        renode.train_many(pictures[:2], labels[:2])
        renode.save_snapshot(tmp_path / "after two.save")
        expected = renode.train_many(pictures[2:], labels[2:]).loss
        renode.load_snapshot(tmp_path / "after two.save")
        np.testing.assert_array_equal(renode.train_many(pictures[2:], labels[2:]).loss, expected)


def test_a_stack_overflow_is_reported_on_the_usart(renode: Any, tmp_path: Path) -> None:
    renode.close()
    pictures, _ = images(1)
    with (
        open_target("renode", build_firmware(toy_dir(tmp_path, RECURSE=1))) as target,
        pytest.raises(DeviceFault, match="HARDFAULT"),
    ):
        target.train(pictures[0], 2)


def test_silence_is_noticed_at_once(renode: Any, tmp_path: Path) -> None:
    renode.close()
    with open_target("renode", silent_firmware(tmp_path)) as target:
        before = target.instructions
        with pytest.raises(TargetError, match="waits for input and has not answered"):
            target.hello()
        assert target.instructions - before < 100_000


def test_one_emulation_at_a_time(renode: Any) -> None:
    with renode, pytest.raises(TargetError, match="one emulation in a process"):
        type(renode)(renode.firmware.path)
