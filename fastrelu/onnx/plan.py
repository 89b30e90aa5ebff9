"""A list of steps as one straight function: nothing is looked up or decided in a call but what its arguments are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy import ndarray

from fastrelu import faults
from fastrelu.onnx.fusion import Step, steps
from fastrelu.onnx.graph import Graph, Value
from fastrelu.operands import name_of

__all__ = ["Plan"]

CONSTANT = ""
"""Stands for all constants; no value has this name."""

_numbers = count(1)


class Plan:
    """A graph, ready to be called with arrays for `arguments`.

    Attributes
    ----------
    arguments : tuple of Value
        In the order of a call.
    steps : list of Step
        What is done.
    run : callable
        Takes the arguments, and returns an array, or a tuple of them if there are several outputs.
    """

    def __init__(self, graph: Graph, arguments: Sequence[Value]):
        self.arguments = tuple(arguments)
        names = {value.name for value in arguments}
        self.steps, constants = steps(graph, names)
        self._name = f"<fastrelu.onnx {next(_numbers)}>"
        self._lines: list[str] = []
        self._step_of: dict[int, Step] = {}
        namespace = self._write(graph, constants)
        exec(compile("\n".join(self._lines), self._name, "exec"), namespace)
        constants.clear()  # what is not packed, folded or handed over is needed no more
        self.run: Callable[..., Any] = namespace["run"]

    def _write(self, graph: Graph, constants: Any) -> dict[str, Any]:
        """Write the lines of the function; what they refer to."""
        namespace: dict[str, Any] = {"ndarray": ndarray, "asarray": np.asarray, "errstate": np.errstate, "alike": _alike}
        variables: dict[str, str] = {}
        for i, value in enumerate(self.arguments):
            variables[value.name] = f"a{i}"
        self._lines.append(f"def run({', '.join(variables.values())}):")
        self._admit(namespace)
        wanted = [value.name for value in graph.outputs]
        last = {name: step for step in self.steps for name in step.kernel.arguments if isinstance(name, str)}
        # The value in whose memory another lies: that of an argument or a constant must not come out.
        roots = {name: name for name in variables}
        new = (f"v{i}" for i in count())
        indent = "    "
        if any(step.kernel.text == "NumPy" and not step.kernel.is_view for step in self.steps):  # what calculates may warn
            self._lines.append(f'{indent}with errstate(all="ignore"):')
            indent *= 2
        for i, step in enumerate(self.steps):
            namespace[f"f{i}"] = step.kernel.function
            words = []
            for j, argument in enumerate(step.kernel.arguments):
                if isinstance(argument, str) and argument in variables:
                    words.append(variables[argument])
                elif argument is None:
                    words.append("None")
                else:
                    word = f"c{i}_{j}"
                    namespace[word] = constants[argument] if isinstance(argument, str) else argument
                    words.append(word)
            inputs = [a for a in step.kernel.arguments if isinstance(a, str)]
            for name in step.outputs:
                variables[name] = next(new) if name else "_"
                roots[name] = roots.get(inputs[0], CONSTANT) if step.kernel.is_view else name
            targets = ", ".join(variables[name] for name in step.outputs)
            self._lines.append(f"{indent}{targets} = f{i}({', '.join(words)})")
            self._step_of[len(self._lines)] = step
            dead = [variables[a] for a in dict.fromkeys(inputs) if a in variables and last[a] is step and a not in wanted]
            dead += [variables[name] for name in step.outputs if name and name not in last and name not in wanted]
            if dead:
                self._lines.append(f"{indent}del {', '.join(dead)}")
        self._deliver(graph, variables, roots, constants, namespace)
        return namespace

    def _admit(self, namespace: dict[str, Any]) -> None:
        """Lines that check the arguments, and convert those that are not what the graph wants."""
        symbols = Counter(d for value in self.arguments for d in value.shape or () if isinstance(d, str))
        for i, value in enumerate(self.arguments):
            namespace[f"d{i}"], namespace[f"admit{i}"] = value.dtype, _admission(value)
            fits = [f"type(a{i}) is ndarray", f"a{i}.dtype is d{i}"]
            if value.shape is not None:
                fits.append(f"a{i}.ndim == {len(value.shape)}")
                fits += [f"a{i}.shape[{axis}] == {d}" for axis, d in enumerate(value.shape) if isinstance(d, int)]
            self._lines.append(f"    if not ({' and '.join(fits)}): a{i} = admit{i}(a{i})")
        if any(uses > 1 for uses in symbols.values()):
            namespace["values"] = self.arguments
            self._lines.append(f"    alike(values, ({''.join(f'a{i}, ' for i in range(len(self.arguments)))}))")

    def _deliver(self, graph: Graph, variables: Any, roots: Any, constants: Any, namespace: dict[str, Any]) -> None:
        """Lines that return the results, each an array of its own."""
        words: list[str] = []
        taken = {value.name for value in self.arguments} | {CONSTANT}
        for i, value in enumerate(graph.outputs):
            if value.name not in variables:
                if value.name not in constants:
                    raise ValueError(f"load: output {value.name} is given by no node")
                namespace[f"r{i}"] = constants[value.name]
                words.append(f"r{i}.copy()")
                continue
            word, root = variables[value.name], roots[value.name]
            if root in taken:
                word = f"{word}.copy()"
            else:
                self._lines.append(f"    if type({word}) is not ndarray: {word} = asarray({word})")
            taken.add(root)
            words.append(word)
        self._lines.append(f"    return {words[0] if len(words) == 1 else '(' + ', '.join(words) + ')'}")

    def explain(self, error: Exception) -> Exception:
        """An error of a step as one that names the nodes."""
        trace = error.__traceback__
        step = None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._name:
                step = self._step_of.get(trace.tb_lineno)
            trace = trace.tb_next
        if step is None:
            return error
        # Classes that are derived from these may want more than a text.
        kind = next(base for base in (TypeError, ValueError, IndexError) if isinstance(error, base))
        return kind(f"{' and '.join(map(str, step.nodes))}: {error}")


def _admission(value: Value) -> Callable[[Any], ndarray]:
    """What makes an array of the right type and shape of an argument, or tells why it is none."""

    def admit(given: Any) -> ndarray:
        what = f"input {value.name}"
        fault = faults.device_fault("model", what, given)
        if fault is not None:
            raise fault
        if isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"model: {what} must be a NumPy array, not a masked one")
        try:
            array = np.asarray(given)
        except (TypeError, ValueError) as error:
            raise faults.explain("model", error, {what: given}) from None
        if not _fits(array.dtype, value.dtype):
            raise TypeError(f"model: {what} must be of type {value.dtype} or one that fits it, not {array.dtype}")
        if value.dtype.kind in "iu" and array.size:
            limits = np.iinfo(value.dtype)
            for number in (int(array.min()), int(array.max())):
                if not limits.min <= number <= limits.max:
                    raise ValueError(f"model: {what} must be within the range of {value.dtype}, not {number}")
        if value.shape is not None and (
            array.ndim != len(value.shape)
            or any(isinstance(d, int) and n != d for n, d in zip(array.shape, value.shape, strict=True))
        ):
            allowed = str(value).removeprefix(f"{value.name} {value.dtype} ")
            raise ValueError(f"model: {what} must have shape {allowed}, not {array.shape}")
        with np.errstate(all="ignore"):
            return np.asarray(array, value.dtype)

    return admit


def _fits(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether elements become those that are wanted: floats from any number, integers from integers."""
    is_float = wanted.kind == "f" or name_of(wanted) == "bfloat16"
    allowed = "biuf" if is_float else "biu" if wanted.kind in "iu" else wanted.kind
    return dtype.kind in allowed or (is_float and name_of(dtype) == "bfloat16")


def _alike(values: Sequence[Value], arrays: Sequence[ndarray]) -> None:
    """Refuse arrays that have different lengths along axes of the same name."""
    found: dict[str, tuple[int, str]] = {}
    for value, array in zip(values, arrays, strict=True):
        for d, n in zip(value.shape or (), array.shape, strict=False):
            if isinstance(d, str) and found.setdefault(d, (n, value.name))[0] != n:
                before, other = found[d]
                raise ValueError(f"model: input {value.name} must have {d} = {before} as {other} has, not {n}")
