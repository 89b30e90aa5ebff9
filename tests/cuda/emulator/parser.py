"""PTX text to instructions.

A PTX module is a list of variables and kernels. The body of a kernel is a list of statements; braces open scopes with
registers of their own (inline assembly does that), and labels name places. The result keeps the structure and none of
the text: registers are numbered, scopes are resolved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import UnknownInstruction


@dataclass(frozen=True)
class Register:
    """A register of a kernel: its own name, unique in the kernel, and its declared type."""

    name: str
    type: str


@dataclass(frozen=True)
class Special:
    """A register that the hardware fills, such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """A constant in the text."""

    text: str


@dataclass(frozen=True)
class Symbol:
    """The name of a variable, a parameter or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Vector:
    """``{a, b, c, d}``."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    """``!p``."""

    operand: Operand


@dataclass(frozen=True)
class Pair:
    """``p|q``: two results of one instruction."""

    first: Operand
    second: Operand


Operand = Register | Special | Immediate | Symbol | Address | Vector | Negated | Pair


@dataclass(frozen=True)
class Instruction:
    """One statement: ``@predicate name.modifiers operands``."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Register | None
    negated: bool
    text: str

    @property
    def opcode(self) -> str:
        """The name with its modifiers, as the text has it."""
        return ".".join((self.name, *self.modifiers))


@dataclass
class Variable:
    """A variable of a state space: ``.shared .align 16 .b8 name[1024]``. ``size`` is None where the launch decides."""

    name: str
    space: str
    align: int
    size: int | None
    values: list[int] = field(default_factory=list)
    type: str = "b8"


@dataclass
class Kernel:
    """One ``.entry``: parameters in order, instructions, labels as indices of instructions."""

    name: str
    parameters: list[Variable]
    registers: dict[str, Register]
    instructions: list[Instruction]
    labels: dict[str, int]
    variables: list[Variable]
    directives: dict[str, tuple[int, ...]]


@dataclass
class Module:
    """All that one PTX text defines."""

    target: str
    variables: list[Variable]
    kernels: dict[str, Kernel]


SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4}
SIZES |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16, "f16x2": 4, "bf16x2": 4, "pred": 1}

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>global|shared|local|const|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[$%\w]+)\s*(?P<array>\[\s*(?P<count>\d*)\s*\])?\s*(?:=\s*(?P<values>.*))?$",
    re.S,
)
_MODULE = re.compile(r"\.(version|address_size)\b[^\n]*")


def parse(text: str) -> Module:
    """Read a module.

    Parameters
    ----------
    text : str
        PTX, as NVVM writes it or by hand.

    Returns
    -------
    Module
    """
    text = _MODULE.sub("", _COMMENT.sub(" ", text))
    target = re.search(r"\.target\s+(\w+)[^\n]*", text)
    if target:
        text = text.replace(target.group(), "")
    module = Module(target.group(1) if target else "", [], {})
    place = 0
    entry = re.compile(r"(?:\.(?:visible|weak)\s+)*\.entry\s+([$\w]+)\s*\(([^)]*)\)([^{;]*)\{")
    while text[place:].strip():
        start = re.compile(r"\s*").match(text, place).end()  # type: ignore[union-attr]
        if found := entry.match(text, start):
            end = _closing(text, found.end())
            kernel = _kernel(*found.groups(), text[found.end() : end])  # type: ignore[call-arg]
            module.kernels[kernel.name] = kernel
            place = end + 1
        else:
            end = text.find(";", start)
            statement = text[start : end if end >= 0 else None]
            if re.match(r"(\.\w+\s+)*\.func\b", statement):
                raise UnknownInstruction(f"a function that was not inlined: {statement.split('(')[0]!r}")
            module.variables.append(_variable(statement))
            place = end + 1
    return module


def _closing(text: str, start: int) -> int:
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return i
    raise UnknownInstruction("a kernel's last brace is missing")


def _variable(statement: str) -> Variable:
    found = _VARIABLE.match(statement.strip())
    if not found:
        raise UnknownInstruction(f"cannot read the declaration {statement.strip()!r}")
    width = SIZES[found["type"]]
    size: int | None = width
    if found["array"]:
        size = width * int(found["count"]) if found["count"] else None
    values = [int(v, 0) for v in re.findall(r"0[xX][0-9a-fA-F]+|\d+", found["values"] or "")]
    return Variable(found["name"], found["space"], int(found["align"] or width), size, values, found["type"])


def _kernel(name: str, parameters: str, directives: str, body: str) -> Kernel:
    kernel = Kernel(name, [_variable(p) for p in parameters.split(",") if p.strip()], {}, [], {}, [], {})
    for word, numbers in re.findall(r"\.(\w+)\s+([\d,\s]+)", directives):
        kernel.directives[word] = tuple(int(n) for n in numbers.split(",") if n.strip())
    scopes: list[dict[str, Register]] = [{}]
    opened = 0
    place = 0
    while place < len(body):
        character = body[place]
        if character.isspace() or character == ";":
            place += 1
        elif character == "{":
            opened += 1
            scopes.append({})
            place += 1
        elif character == "}":
            scopes.pop()
            place += 1
        elif label := _LABEL.match(body, place):
            kernel.labels[label.group(1)] = len(kernel.instructions)
            place = label.end()
        else:
            end = body.index(";", place)
            _statement(kernel, scopes, opened, body[place:end].strip())
            place = end + 1
    return kernel


def _statement(kernel: Kernel, scopes: list[dict[str, Register]], opened: int, statement: str) -> None:
    if statement.startswith(".reg"):
        _, dtype, names = statement.split(None, 2)
        suffix = f"@{opened}" if len(scopes) > 1 else ""
        for name in names.split(","):
            many = re.match(r"([%\w]+)<(\d+)>", name.strip())
            for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name.strip()]:
                scopes[-1][one] = kernel.registers[one + suffix] = Register(one + suffix, dtype[1:])
    elif statement.startswith(".pragma") or statement.startswith(".loc"):
        pass
    elif statement.startswith("."):
        kernel.variables.append(_variable(statement))
    else:
        kernel.instructions.append(_instruction(scopes, statement))


def _instruction(scopes: list[dict[str, Register]], statement: str) -> Instruction:
    guard = re.match(r"@(!?)\s*([%\w]+)\s+", statement)
    rest = statement[guard.end() :] if guard else statement
    head, _, tail = rest.partition(" ") if " " in rest.split("\t")[0] else rest.partition("\t")
    name, *modifiers = head.strip().split(".")
    operands = tuple(_operand(scopes, part) for part in _split(tail))
    predicate = _operand(scopes, guard[2]) if guard else None
    assert predicate is None or isinstance(predicate, Register), statement
    return Instruction(name, tuple(modifiers), operands, predicate, bool(guard and guard[1]), " ".join(statement.split()))


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def _operand(scopes: list[dict[str, Register]], text: str) -> Operand:
    text = text.strip()
    if text.startswith("{"):
        return Vector(tuple(_operand(scopes, part) for part in _split(text[1:-1])))
    if text.startswith("["):
        base, sign, offset = re.fullmatch(r"\[\s*([^\s+\-\]]+)\s*(?:([+-]\s*-?)\s*(\w+))?\s*\]", text).groups()  # type: ignore[union-attr]
        value = int(offset, 0) * (-1 if "-" in sign else 1) if offset else 0
        return Address(_operand(scopes, base), value)
    if text.startswith("!"):
        return Negated(_operand(scopes, text[1:]))
    if "|" in text:
        first, second = text.split("|")
        return Pair(_operand(scopes, first), _operand(scopes, second))
    for scope in reversed(scopes):
        if text in scope:
            return scope[text]
    if text.startswith("%"):
        return Special(text)
    if re.match(r"[-\d]", text):
        return Immediate(text)
    return Symbol(text)
