"""Commands for what lies outside this computer's processor: `tinytrain flash` and `tinytrain setup renode`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.cli_options import Data, DataPath, Model, PerClass, Scheme, Seed, Size, console

setup_app = typer.Typer(no_args_is_help=True, help="Install what pip does not: `tinytrain setup renode`.")


def flash(
    model: Model,
    scheme: Scheme = "last",
    board: Annotated[str, typer.Option(help="nucleo-f746zg or stm32f746g-disco")] = DEFAULT_BOARD,
    tool: Annotated[
        str | None, typer.Option(help="openocd, pyocd or st-flash (default: the first that is installed)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the command, do not run it")] = False,
    elf: Annotated[Path | None, typer.Option(help="also put the firmware here, for Renode and for a debugger")] = None,
    data: Data = "mnist",
    data_path: DataPath = None,
    per_class: PerClass = 50,
    held_out: Annotated[int, typer.Option(min=0, help="images kept back; the calibration sees none of them")] = 100,
    size: Size = None,
    seed: Seed = 0,
) -> None:
    """Build a model's firmware and write it to a board. Training saved on the board stays.

    **Examples**

    `tinytrain flash demo --scheme sparse --board nucleo-f746zg`

    `tinytrain flash demo --scheme sparse --dry-run --elf build/firmware.elf`
    """
    from tinytrain_lite import flashing
    from tinytrain_lite.codegen import generate
    from tinytrain_lite.fit import check_fits
    from tinytrain_lite.toolchain import build_firmware
    from tinytrain_lite.train import datasets
    from tinytrain_lite.workload import prepare

    description = load_board(board)
    chosen = tool or (flashing.TOOLS[0] if dry_run else flashing.choose_tool())
    images = datasets.load(data, path=data_path)
    with console.status("importing, quantizing, compiling"), tempfile.TemporaryDirectory() as folder:
        work = prepare(model, images, per_class=per_class, held_out=held_out, size=size, seed=seed)
        program = work.compile(scheme)
        check_fits(program, description)
        generate(program, Path(folder))
        firmware = build_firmware(Path(folder), board=board)
    if elf:
        elf.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(firmware, elf)
    command = flashing.flash_command(elf or firmware, description, chosen)
    console.print(str(command), soft_wrap=True, highlight=False, markup=False)
    if not dry_run:
        with console.status(f"{chosen}: writing and verifying"):
            flashing.run_flash(command)
        console.print(f"{board} runs {model}, {scheme}")


@setup_app.command()
def renode() -> None:
    """Install the pinned Renode and pyrenode3, for `--target renode`. Without a network it says what to put where."""
    from tinytrain_lite.target.renode_home import VERSION, setup_renode

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"Renode {VERSION}", total=None)
        target = setup_renode(console.print, lambda done, total: bar.update(task, completed=done, total=total))
        bar.update(task, total=1, completed=1)
    console.print(f"Renode {VERSION}: {target}")
