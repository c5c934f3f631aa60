"""Compare the cycle estimate with published board measurements of CMSIS-NN.

Lai et al. 2018 (arXiv 1801.06601, table 1) give the run time of each layer of a CIFAR-10 network on a
NUCLEO-F746ZG at 216 MHz. This script compiles the same kernels from a CMSIS 5 checkout of yours with the
pinned compiler, runs each layer in Unicorn, counts the blocks it executes and prints estimate beside
measurement::

    git clone --depth 1 --branch 5.3.0 https://github.com/ARM-software/CMSIS_5 /tmp/CMSIS_5
    python tests/bench/cycles_cmsis_cifar10.py --cmsis /tmp/CMSIS_5

CMSIS 5.3.0 is the first release with CMSIS-NN, the one nearest to the paper. Weights and image are seeded
noise. The RGB convolution loads words that are not word-aligned; the table prices them in a column of their
own, because a profile of blocks, which is all the estimate normally has, does not show them.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import unicorn
import unicorn.arm_const
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tinytrain_lite.target.cortex_m7 import UNALIGNED_LOAD_CYCLES
from tinytrain_lite.target.cycles import Estimate, estimate

CLOCK_HZ = 216e6
# Layer -> published run time in ms; the rectifiers have no row of their own in the paper.
PUBLISHED_MS: dict[str, float | None] = {
    "conv1": 31.4,
    "relu1": None,
    "pool1": 1.6,
    "conv2": 42.8,
    "relu2": None,
    "pool2": 0.4,
    "conv3": 22.6,
    "relu3": None,
    "pool3": 0.3,
    "fc": 0.1,
}
SOURCES = (
    "ConvolutionFunctions/arm_convolve_HWC_q7_RGB.c",
    "ConvolutionFunctions/arm_convolve_HWC_q7_fast.c",
    "ConvolutionFunctions/arm_nn_mat_mult_kernel_q7_q15.c",
    "ConvolutionFunctions/arm_nn_mat_mult_kernel_q7_q15_reordered.c",
    "NNSupportFunctions/arm_q7_to_q15_no_shift.c",
    "NNSupportFunctions/arm_q7_to_q15_reordered_no_shift.c",
    "PoolingFunctions/arm_pool_q7_HWC.c",
    "ActivationFunctions/arm_relu_q7.c",
    "FullyConnectedFunctions/arm_fully_connected_q7_opt.c",
)
INCLUDES = ("CMSIS/NN/Include", "CMSIS/DSP/Include", "CMSIS/Core/Include")
# The headers of a C library that arm_math.h asks for; a freestanding compiler has none.
STUBS = {
    "string.h": "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\n"
    "void *memset(void *, int, size_t);\nvoid *memmove(void *, const void *, size_t);\n",
    "math.h": "float sqrtf(float);\nfloat fabsf(float);\ndouble sqrt(double);\n",
}
LINKER_SCRIPT = """
SECTIONS {
  . = 0x08000000;
  .text : { *(.text*) *(.rodata*) }
  .ARM.exidx : { *(.ARM.exidx*) }
  . = 0x20000000;
  .data : { *(.data*) }
  .bss : { *(.bss*) *(COMMON) }
}
"""
FLASH, FLASH_BYTES = 0x08000000, 1 << 20
SRAM, SRAM_BYTES = 0x20000000, 320 << 10
RETURN_ADDRESS = FLASH + FLASH_BYTES - 16


def build(cmsis: Path, directory: Path) -> Path:
    """Compile and link the kernels and the layers around them; the ELF file."""
    for name, text in STUBS.items():
        (directory / name).write_text(text)
    script = directory / "link.ld"
    script.write_text(LINKER_SCRIPT)
    elf = directory / "cifar10.elf"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "thumb-freestanding-eabihf"]
    command += ["-mcpu=cortex_m7+fp_armv8d16sp", "-O2", "-ffp-contract=off", "-fno-sanitize=undefined", "-w"]
    command += ["-DARM_MATH_CM7", "-D__FPU_PRESENT=1", f"-I{directory}"]
    command += [f"-I{cmsis / include}" for include in INCLUDES]
    command += [str(Path(__file__).with_suffix(".c")), *(str(cmsis / "CMSIS/NN/Source" / s) for s in SOURCES)]
    command += ["-Wl,--entry=conv1", f"-Wl,-T,{script}", "-o", str(elf)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"cannot build the kernels of {cmsis}:\n{result.stderr}")
    return elf


class Machine:
    """The ELF in Unicorn, its data filled with seeded noise."""

    def __init__(self, path: Path) -> None:
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._uc.ctl_set_cpu_model(unicorn.arm_const.UC_CPU_ARM_CORTEX_M7)
        self._uc.mem_map(FLASH, FLASH_BYTES)
        self._uc.mem_map(SRAM, SRAM_BYTES)
        self._uc.mem_write(SRAM, random.Random(0).randbytes(SRAM_BYTES))
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            symbols = elf.get_section_by_name(".symtab")
            assert isinstance(symbols, SymbolTableSection)
            self._symbols = {s.name: s["st_value"] for s in symbols.iter_symbols()}
            for segment in elf.iter_segments("PT_LOAD"):
                self._uc.mem_write(segment["p_paddr"], segment.data())
        self._blocks: Counter[tuple[int, int]] = Counter()
        self._unaligned_loads = 0
        self._uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block)
        self._uc.hook_add(unicorn.UC_HOOK_MEM_READ, self._on_read)

    def _on_block(self, _uc: unicorn.Uc, address: int, size: int, _data: object) -> None:
        self._blocks[address, size] += 1

    def _on_read(self, _uc: unicorn.Uc, _kind: int, address: int, size: int, _value: int, _data: object) -> None:
        self._unaligned_loads += address % size != 0

    def run(self, function: str) -> tuple[Estimate, int]:
        """Call a function without arguments; its estimate and the number of unaligned loads."""
        self._blocks.clear()
        self._unaligned_loads = 0
        self._uc.reg_write(unicorn.arm_const.UC_ARM_REG_SP, SRAM + SRAM_BYTES)
        self._uc.reg_write(unicorn.arm_const.UC_ARM_REG_LR, RETURN_ADDRESS | 1)
        self._uc.emu_start(self._symbols[function] | 1, RETURN_ADDRESS)
        rows = [(address, size, function, count) for (address, size), count in self._blocks.items()]
        result = estimate(rows, lambda address, size: bytes(self._uc.mem_read(address, size)))
        return result, self._unaligned_loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cmsis", type=Path, required=True, help="CMSIS 5 checkout, release 5.3.0")
    cmsis = parser.parse_args().cmsis
    missing = [p for p in (*INCLUDES, *(f"CMSIS/NN/Source/{s}" for s in SOURCES)) if not (cmsis / p).exists()]
    if missing:
        raise SystemExit(f"{cmsis} has no {missing[0]}: give --cmsis a checkout of CMSIS_5 at tag 5.3.0")

    table = Table(title="CMSIS-NN CIFAR-10 at 216 MHz beside Lai et al. 2018, table 1. Cycles are an estimate.")
    table.add_column("layer")
    headings = (
        "instructions",
        "cycles",
        "mispredicted",
        "ms",
        "unaligned ms",
        "published ms",
        "error",
        "with unaligned",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    totals = [0.0, 0.0, 0.0]
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(build(cmsis, Path(directory)))
        for layer, published in track(PUBLISHED_MS.items(), "layers", console=Console(stderr=True)):
            result, unaligned_loads = machine.run(layer)
            estimated = result.cycles / CLOCK_HZ * 1e3
            unaligned = unaligned_loads * UNALIGNED_LOAD_CYCLES / CLOCK_HZ * 1e3
            missed = sum(cost.mispredict_cycles for cost in result.costs) / result.cycles
            row = [layer, f"{result.instructions:,}", f"{result.cycles:,}", f"{missed:.1%}"]
            row += [f"{estimated:.2f}", f"{unaligned:.2f}"]
            if published is not None:
                row += _errors(estimated, unaligned, published)
                totals = [a + b for a, b in zip(totals, (estimated, unaligned, published), strict=True)]
            table.add_row(*row)
    estimated, unaligned, published = totals
    table.add_section()
    table.add_row("sum", "", "", "", f"{estimated:.1f}", f"{unaligned:.1f}", *_errors(*totals))
    Console(width=120).print(table)


def _errors(estimated: float, unaligned: float, published: float) -> list[str]:
    with_unaligned = (estimated + unaligned) / published - 1
    return [f"{published:.1f}", f"{estimated / published - 1:+.1%}", f"{with_unaligned:+.1%}"]


if __name__ == "__main__":
    main()
