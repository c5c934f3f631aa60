"""Thumb-2 machine code in the terms of the Cortex-M7 pipeline model.

capstone disassembles; the table of forms below says which pipe an instruction takes, through which port it
reads each operand and what kind of result it writes (`tinytrain_lite.target.cortex_m7` has the meaning and
the sources). The roles of operands are a table of our own because capstone 5 reports the access wrongly for
SMLAL, SSAT, PKHBT, VLDM and others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import capstone
from capstone import arm

from tinytrain_lite.target.cortex_m7 import DIVIDE_CYCLES, VDIV_CYCLES, VSQRT_CYCLES, Instruction


@dataclass(frozen=True)
class _Form:
    """How to read the operands of a mnemonic: one letter of ``roles`` for each operand.

    w write, a ALU, e early, m factor, c addend, f FPU, s store data, k FPU register bound for the core,
    i ignored; A, C, F, L are ALU, MAC, VFMA, VMLA operands both read and written. The last letter repeats.
    """

    pipe: str
    roles: str
    result: str = "ALU"
    early: str = ""
    cycles: int = 1
    alone: bool = False
    shifter: bool = False  # needs the early shifter


_PORTS = {
    "a": "late",
    "b": "beside shift",
    "e": "early",
    "m": "mul",
    "c": "acc",
    "f": "fp",
    "s": "store",
    "k": "fp_to_core",
}
_UPDATED = {"A": "late", "C": "acc", "F": "fma_acc", "L": "mla_acc"}

# First match wins. "dsp" instructions share one SIMD pipe and issue in the older slot only [J, L].
_FORMS: tuple[tuple[str, _Form], ...] = (
    ("umaal|[su]mlal.*|smlsld.*", _Form("mac", "CCm", "MAC")),
    ("[su]mull", _Form("mac", "wwm", "MAC")),
    ("mla|mls|smla.*|smls.*|smml[as].*", _Form("mac", "wmmc", "MAC")),
    ("mul|smul.*|smmul.*|smu[as]d.*", _Form("mac", "wm", "MAC")),
    ("[su]div", _Form("divide", "wa", cycles=DIVIDE_CYCLES, alone=True)),
    ("[su]sat.*", _Form("dsp", "wie", "saturated")),
    ("u?q(add|sub|asx|sax).*|qd(add|sub)|usad8", _Form("dsp", "wa", "saturated")),
    ("usada8", _Form("dsp", "waac", "saturated")),
    ("[su]bfx", _Form("dsp", "we", shifter=True)),
    ("rev.*|rbit", _Form("dsp", "we", "byte reversal", shifter=True)),
    ("bfc", _Form("dsp", "A", shifter=True)),
    ("bfi", _Form("dsp", "Ae", shifter=True)),
    ("pkhtb", _Form("dsp", "we", shifter=True)),
    ("pkhbt|[su]xta.*", _Form("dsp", "wae", shifter=True)),
    ("[su]xt[bh].*|clz|sel|[su]h?(add|sub)(8|16)|[su]h?(asx|sax)", _Form("dsp", "wa")),
    ("ls[lr]|asr|ror", _Form("shift", "wa", early="any")),
    ("rrx", _Form("shift", "we")),
    ("cmp|cmn|tst|teq", _Form("alu", "a")),
    ("movt", _Form("alu", "A", early="older")),
    ("add|sub|movs?|movw|adr", _Form("alu", "wa", early="older")),
    ("adc|sbc|rsb|and|orr|orn|eor|bic|mvn|addw|subw", _Form("alu", "wa")),
    ("it|nop|hint", _Form("alu", "")),
    ("vdiv", _Form("fp", "wf", "FP quotient", cycles=VDIV_CYCLES)),
    ("vsqrt", _Form("fp", "wf", "FP quotient", cycles=VSQRT_CYCLES)),
    ("vfn?m[as]", _Form("fp mac", "Ff", "VFMA")),
    ("vn?ml[as]", _Form("fp mac", "Lf", "VMLA")),
    ("vcmpe?", _Form("fp", "f")),
    ("v(add|sub|n?mul|neg|abs|cvt.*|rint.*|maxnm|minnm|sel.*)", _Form("fp", "wf", "FP")),
    ("fmstat|vmrs", _Form("fp move", "i", alone=True)),
    ("vmsr", _Form("fp move", "ia", alone=True)),
    ("fconst[sd]", _Form("fp", "w", "FP")),  # two VMOV of a constant never pair [J]
    ("push|pop|v?ldm.*|v?stm.*|vpush|vpop", _Form("multiple", "", alone=True)),
    ("ldrd|strd", _Form("double", "", alone=True)),
    ("tb[bh]", _Form("branch", "", cycles=2, alone=True)),  # [L]
    ("b|bl|blx|bx|cbn?z", _Form("branch", "a")),
    ("ldr.*|vldr", _Form("load", "w")),
    ("str.*|vstr", _Form("store", "s")),
    ("pld.?", _Form("load", "")),
)
_SYSTEM = _Form("system", "wa", alone=True)  # MRS, DSB, SVC, ...: one cycle, alone [L]
_READS_FLAGS = re.compile(r"adc|sbc|rrx|sel|vsel.*")
_SETS_FLAGS = re.compile(r"cmp|cmn|tst|teq|movs|fmstat")
_CALLS = re.compile(r"bl|blx")


@cache
def _form(name: str) -> _Form:
    return next((form for pattern, form in _FORMS if re.fullmatch(pattern, name)), _SYSTEM)


def _registers(name: str) -> tuple[str, ...]:
    """The single-precision halves of an FPU double register; any other register as it is."""
    if re.fullmatch(r"d\d+", name):
        number = 2 * int(name[1:])
        return f"s{number}", f"s{number + 1}"
    return (name,)


def _is_shifted_constant(value: int) -> bool:
    """Whether a Thumb-2 modified immediate is a shifted byte: neither a plain byte nor a pattern."""
    value &= 0xFFFFFFFF
    low = value & 0xFF
    high = value >> 8 & 0xFF
    patterns = (low, low * 0x00010001, high * 0x01000100, low * 0x01010101)
    return value not in patterns


def _uses_inline_shift(instruction: capstone.CsInsn, form: _Form) -> bool:
    operands = instruction.operands
    if form.shifter or form.pipe in ("alu", "dsp") and any(o.shift.type for o in operands):
        return True
    wide_constant = (
        form.pipe == "alu"
        and instruction.size == 4
        and bool(operands)
        and operands[-1].type == arm.ARM_OP_IMM
        and instruction.mnemonic not in ("addw", "subw", "movw", "movt")
    )
    return wide_constant and _is_shifted_constant(operands[-1].imm)


def _operands(
    instruction: capstone.CsInsn, form: _Form, name: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], tuple[str, int] | None]:
    """Registers read (with port), registers written (with kind of result), address if base + offset."""
    reads: list[tuple[str, str]] = []
    writes: list[tuple[str, str]] = []
    location = None
    result = form.result
    is_load = form.pipe == "load" or name.startswith(("ldr", "ldm", "pop", "vldm", "vpop"))
    if is_load:
        result = "VLDR" if name.startswith("v") else "narrow load" if re.match(r"ldrs?[bh]", name) else "load"

    shifted = _uses_inline_shift(instruction, form)
    position = 0
    for operand in instruction.operands:
        if operand.type == arm.ARM_OP_MEM:
            base = instruction.reg_name(operand.mem.base)
            reads.append((base, "early"))
            if operand.mem.index:
                reads.append((instruction.reg_name(operand.mem.index), "early"))
            else:
                location = (base, operand.mem.disp)
            if instruction.writeback:
                writes.append((base, "address"))
            continue
        if operand.type != arm.ARM_OP_REG:
            position += 1
            continue
        role = form.roles[min(position, len(form.roles) - 1)] if form.roles else ""
        if form.pipe == "multiple":
            is_base = position == 0 and name not in ("push", "pop", "vpush", "vpop")
            role = "B" if is_base else "w" if is_load else "s"
        elif form.pipe == "double":
            role = "w" if is_load else "s"
        if shifted and role == "a":
            role = "e" if operand.shift.type else "b"
        for register in _registers(instruction.reg_name(operand.reg)):
            if role == "w":
                writes.append((register, result))
                reads_too = form.roles and position == 0 and operand.access & capstone.CS_AC_READ
                if reads_too and len(instruction.operands) < 3:
                    reads.append((register, _PORTS.get(form.roles[-1], "late")))  # two-operand form
            elif role == "B":
                reads.append((register, "early"))
                if instruction.writeback:
                    writes.append((register, "address"))
            elif role in _UPDATED:
                reads.append((register, _UPDATED[role]))
                writes.append((register, result))
            elif role in _PORTS:
                reads.append((register, _PORTS[role]))
        position += 1
    if name in ("push", "pop", "vpush", "vpop"):
        reads.append(("sp", "early"))
        writes.append(("sp", "address"))
    return reads, writes, location


def _vmov(instruction: capstone.CsInsn) -> _Form:
    """VMOV by direction; two registers at once never share the cycle [J, L]."""
    names = [instruction.reg_name(o.reg) for o in instruction.operands if o.type == arm.ARM_OP_REG]
    core = [not re.fullmatch(r"[sd]\d+", name) for name in names]
    pair = len(names) > 2
    half = len(names) // 2
    if core[0]:
        return _Form("fp move", "w" * half + "k", "ALU", alone=pair)
    return _Form("fp move", "w" * half + ("a" if core[-1] else "f"), "FP", alone=pair)


def _decode(instruction: capstone.CsInsn) -> Instruction:
    name = instruction.insn_name()
    form = _vmov(instruction) if name == "vmov" else _form(name)
    reads, writes, location = _operands(instruction, form, name)
    pipe, cycles, alone = form.pipe, form.cycles, form.alone
    written = [register for register, _ in writes]

    if pipe in ("multiple", "double"):
        moved = sum(kind != "address" for _, kind in writes) + sum(port == "store" for _, port in reads)
        cycles = (moved + 1) // 2  # two words a cycle [J]
        pipe = "store" if any(port == "store" for _, port in reads) else "load"
    elif name in ("vldr", "vstr") and instruction.reg_name(instruction.operands[0].reg).startswith("d"):
        alone = True  # a double word takes both banks [J, L]
    jumps = pipe == "branch" or "pc" in written
    conditional = name in ("cbz", "cbnz") or instruction.cc not in (arm.ARM_CC_AL, arm.ARM_CC_INVALID)
    if conditional and not jumps and name != "it" or _READS_FLAGS.fullmatch(name):
        reads.append(("cpsr", "late"))
    if instruction.update_flags or _SETS_FLAGS.fullmatch(name):
        writes.append(("cpsr", "ALU"))
    if name.startswith("vcmp"):
        writes.append(("fpscr", "ALU"))
    if name == "fmstat":
        reads, writes = [("fpscr", "late")], [("cpsr", "ALU")]
    target = None
    if pipe == "branch" and instruction.operands and instruction.operands[-1].type == arm.ARM_OP_IMM:
        target = instruction.operands[-1].imm & 0xFFFFFFFF
    return Instruction(
        address=instruction.address,
        size=instruction.size,
        name=name,
        text=f"{instruction.mnemonic} {instruction.op_str}".rstrip(),
        pipe=pipe,
        reads=tuple(r for r in reads if r[0] != "pc"),
        writes=tuple(w for w in writes if w[0] != "pc"),
        cycles=cycles,
        alone=alone,
        inline_shift=_uses_inline_shift(instruction, form),
        early=form.early if not _uses_inline_shift(instruction, form) else "",
        location=location,
        target=target,
        jumps=jumps,
        conditional=jumps and conditional,
        returns=bool(_CALLS.fullmatch(name)),
    )


@cache
def _disassembler() -> capstone.Cs:
    disassembler = capstone.Cs(
        capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
    )
    disassembler.detail = True
    return disassembler


def decode(code: bytes, address: int) -> tuple[Instruction, ...]:
    """Decode Thumb-2 machine code of a straight run of instructions.

    Args:
        code: little-endian machine code.
        address: address of its first byte, Thumb bit clear.

    Raises:
        ValueError: if some bytes are not an instruction of the Cortex-M7.
    """
    decoded = tuple(_decode(i) for i in _disassembler().disasm(code, address))
    length = sum(i.size for i in decoded)
    if length != len(code):
        raise ValueError(
            f"no Cortex-M7 instruction at 0x{address + length:08x} "
            f"({code[length : length + 4].hex(' ')}): is this address code, and is the block whole?"
        )
    return decoded
