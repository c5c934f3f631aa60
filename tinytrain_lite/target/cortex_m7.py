"""The Cortex-M7 pipeline as the cycle model knows it: operand stages, result latencies, pairing rules.

The Cortex-M7 is an in-order, two-wide core. Four execute stages matter for timing::

    EX1   addresses, inline shifts, the early ALU
    EX2   the late ALU, first half of a multiplication, data of a word load
    EX3   accumulation of a MAC, data of a byte or half-word load
    EX4   data of a store

An instruction that issues in cycle ``t`` does the work of EX1 in cycle ``t``, of EX2 in ``t + 1``
and so on. It may issue when each operand is available in the stage that reads it
(``READ_STAGE``); its own result is available ``AVAILABLE`` cycles after issue. Those two tables
and the pairing rules of ``pair_conflict`` are the whole model of the pipeline.

Arm publishes no cycle table for this core. Each figure below names where it comes from:

[J]  jnk0le, "random: pipeline cycle test", Cortex-M7 chapter. Measured on an STM32H743.
[Q]  quinapalus.com/cm7cycles.html. Measured on an STM32H730.
[L]  LLVM, ``ARMScheduleM7.td``: the scheduling model that Arm's compiler engineers contributed.

No figure was adjusted to fit a benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

# The stage, counted from EX1 = 0, that reads an operand through each port.
READ_STAGE = {
    "early": 0,  # addresses, inline shifted operands, bit-field sources [J, L]
    "late": 1,  # the ALU
    "beside shift": 1,  # the plain operand of an instruction that shifts the other one inline
    "mul": 1,  # the two factors of a multiplication
    "acc": 2,  # the addend of an integer MAC [J, L]
    "store": 3,  # store data: any result of the same cycle can be stored [J]
    "fp": 1,  # operands of FPU arithmetic
    "fp_to_core": 1,  # VMOV from an FPU register
    "fma_acc": 1,  # addend of VFMA
    "mla_acc": 2,  # addend of VMLA
}

# Cycles from issue until a result can enter the stage that reads it; "*" is any port not named.
AVAILABLE: dict[str, dict[str, int]] = {
    "early ALU": {"*": 1},  # feeds the late ALU of the same cycle [J]
    "ALU": {"*": 2},
    "byte reversal": {"*": 1, "early": 2},  # REV, RBIT [J]
    "address": {"*": 1},  # base register written back [J, L]
    "load": {"*": 2, "mul": 3, "beside shift": 3},  # both take a word load one cycle late [J]
    "narrow load": {"*": 3},  # LDRB, LDRH: one cycle more than LDR [J, L]
    "MAC": {"*": 3},  # one cycle more than the ALU; chains on the addend every cycle [J, Q, L]
    "saturated": {"*": 3},  # SSAT, USAT, QADD, ... [L]
    "FP": {"*": 4},  # VADD, VMUL, VCVT, VMOV: latency 3 [J, Q, L]
    "FP quotient": {"*": 2},  # VDIV, VSQRT: the pipeline has stood still until it was there [J]
    "VFMA": {"*": 6, "fma_acc": 4, "mla_acc": 4},  # latency 5; 3 to the next addend [J, Q]
    "VMLA": {"*": 7, "mla_acc": 5},  # latency 6; 3 to the next addend [J, Q]
    "VLDR": {"*": 2, "fma_acc": 4, "mla_acc": 4, "fp_to_core": 3},  # [J]
}

DIVIDE_CYCLES = 7  # SDIV, UDIV block the pipeline; in truth the quotient's length matters [L]
VDIV_CYCLES, VSQRT_CYCLES = 16, 14  # [J]; [L] has 16 for both
MISPREDICT_CYCLES = 8  # flags set just before the branch [J]
MISPREDICT_CYCLES_EARLY_FLAGS = 6  # flags set at least FLAG_LEAD_CYCLES before it [J]
FLAG_LEAD_CYCLES = 3
UNALIGNED_LOAD_CYCLES = 3  # more, at least [J]; a block profile does not see alignment
FP_ADD_AFTER_MAC_CYCLES = 4  # VADD waits three further cycles after VMLA or VFMA [J]


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction, in the terms of the model.

    ``reads`` pairs a register with the port of ``READ_STAGE`` it enters, ``writes`` a register with
    the kind of result of ``AVAILABLE``. Flags are the register ``cpsr``.
    """

    address: int
    size: int  # bytes
    text: str
    name: str  # mnemonic without condition, width and flag suffix
    pipe: str  # alu, shift, dsp, mac, load, store, branch, fp, fp mac, fp move, divide, system
    reads: tuple[tuple[str, str], ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    cycles: int = 1  # issue cycles it occupies
    alone: bool = False  # never shares its cycle
    inline_shift: bool = False  # takes the early shifter for operand 2
    early: str = ""  # may run in the early ALU: "" never, "older" slot only, "any" slot
    location: tuple[str, int] | None = None  # base register and byte offset, if that is the address
    target: int | None = None  # of a direct branch
    jumps: bool = False  # control may go elsewhere than to the next address
    conditional: bool = False  # a jump that can fall through
    returns: bool = False  # control comes back to the next address (BL, BLX)

    @property
    def end(self) -> int:
        return self.address + self.size


_ONE_PER_CYCLE = {"dsp", "mac", "store", "branch", "divide", "system"}
_FPU_ARITHMETIC = {"fp", "fp mac"}


def pair_conflict(older: Instruction, younger: Instruction) -> str:
    """Why two neighbouring instructions cannot issue in one cycle; empty if they can.

    Data dependencies are not looked at here: they follow from READ_STAGE and AVAILABLE.
    """
    if older.alone or younger.alone:
        return "issues alone"
    if older.jumps:
        return "follows a taken branch"  # [J] saw it pair with its destination in some alignments
    if older.pipe == younger.pipe and older.pipe in _ONE_PER_CYCLE:
        return f"one {older.pipe} a cycle"
    if {older.pipe, younger.pipe} <= _FPU_ARITHMETIC:
        return "one FPU operation a cycle"
    if younger.pipe == "dsp":
        return "SIMD pipe is fed by the older slot"
    if {older.pipe, younger.pipe} == {"mac", "store"}:
        return "no MAC beside a store"  # [J]
    if younger.inline_shift and (older.inline_shift or older.pipe == "shift"):
        return "one early shifter"  # [J]'s matrix of operand-2 kinds
    if "fp mac" in (older.pipe, younger.pipe):
        other = younger if older.pipe == "fp mac" else older
        if other.pipe == "fp move" or other.name in ("vldr", "vstr"):
            return "no FPU transfer beside an FPU MAC"  # [J]
    if bank_conflict(older, younger) == 1.0:
        return "same memory bank"
    return ""


def bank_conflict(older: Instruction, younger: Instruction) -> float:
    """Probability, 0 to 1, that two loads want the same bank.

    DTCM and data cache have two banks: even and odd words [J]. Two addresses off one base register whose
    offsets differ by ``d`` bytes share a bank for a fraction ``|1 - (d mod 8) / 4|`` of all positions of
    the base; for unrelated addresses it is one half.
    """
    if older.pipe != "load" or younger.pipe != "load":
        return 0.0
    if older.location and younger.location and older.location[0] == younger.location[0]:
        distance = (younger.location[1] - older.location[1]) % 8
        return abs(1 - distance / 4)
    return 0.5
