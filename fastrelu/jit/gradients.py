"""The backward passes of the fused layers inside compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba.core import types
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from fastrelu import gradients
from fastrelu.jit import kinds
from fastrelu.jit.source import OPTIONS, Operand, Result, array_call, assignment, declaration
from fastrelu.operations import GRADIENTS, backward


def register() -> None:
    for name in gradients.__all__:
        function = getattr(gradients, name)
        overload(function, jit_options=OPTIONS)(declaration(function, partial(_implementation, name)))


def _implementation(name: str, parameters: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    return _Call(name, parameters, arguments).implementation()


def _names(name: str, argument: str, given: Any) -> tuple[str, ...]:
    """The gradients that a tuple of literal strings names, in their order."""
    given = given.value if isinstance(given, types.Omitted) else given
    if isinstance(given, types.BaseTuple):
        given = tuple(getattr(kind, "literal_value", kind) for kind in given)
    if not isinstance(given, tuple) or not all(i in GRADIENTS for i in given):
        kinds.fail(name, argument, given, f"a tuple of literal names among {GRADIENTS}")
    return tuple(i for i in GRADIENTS if i in given)


class _Call:
    """One combination of argument types."""

    def __init__(self, name: str, parameters: str, arguments: dict[str, Any]):
        self.name, self.parameters = name, parameters
        self.wanted = _names(name, "wanted", arguments.pop("wanted"))
        self.added = _names(name, "accumulate", arguments.pop("accumulate"))
        if not self.wanted:
            kinds.fail(name, "wanted", "()", f"a tuple of at least one of {GRADIENTS}")
        self.outputs = self._outputs(arguments.pop("out"))
        self.given = {i: kinds.plain(argument) for i, argument in arguments.items()}
        self.is_mask = name == "linear_relu_backward" and getattr(self.given["y"], "dtype", None) == types.uint8
        self._check_operands()
        self.dtype = self._element()
        for i, kind in self.outputs.items():
            kinds.check_output(name, f"out for {i}", kind, self.dtype)
        self.is_flat = self.given["w"] is None or self.given["w"].ndim == 2

    def _outputs(self, out: Any) -> dict[str, Any]:
        out = out.value if isinstance(out, types.Omitted) else out
        if out is None or isinstance(out, types.NoneType):
            out = (None,) * 3
        if not isinstance(out, types.BaseTuple | tuple) or len(out) != 3:
            kinds.fail(self.name, "out", out, "a tuple of three arrays or None, for dx, dw and db")
        outputs = {i: kinds.plain(kind) for i, kind in zip(GRADIENTS, out, strict=True) if kinds.plain(kind) is not None}
        for i in outputs:
            if i not in self.wanted:
                kinds.fail(self.name, f"out for {i}", outputs[i], "None, since wanted does not name it")
        for i in self.added:
            if i not in outputs:
                kinds.fail(self.name, "accumulate", self.added, f"without {i}, for which out has no array")
        return outputs

    def _check_operands(self) -> None:
        needed = {"dy", "y", *(["x"] * ("dw" in self.wanted)), *(["w"] * ("dx" in self.wanted))}
        for i, kind in self.given.items():
            if kind is None and i in needed:
                kinds.fail(self.name, i, "None", "an array")
            if kind is not None:
                kinds.check(self.name, i, kind, numbers=i == "alpha")
                least = 2 if i == "w" else 0 if i == "alpha" else 1
                if least and kind.ndim < least:
                    kinds.fail(self.name, i, kind, f"an array of at least {least} axes")
        w, dy = self.given["w"], self.given["dy"]
        if w is None or w.ndim == 2:
            if isinstance(self.given.get("alpha"), types.Array):
                kinds.fail(self.name, "alpha", self.given["alpha"], "a number")
            for i in ("x", "y"):
                kind = self.given.get(i)
                if kind is not None and kind.ndim != dy.ndim:
                    kinds.fail(self.name, i, kind, f"an array of as many axes as dy, {dy.ndim}")

    def _element(self) -> Any:
        """The type to calculate in: operands that are not needed, and what is added to, take part in the choice."""
        taking = {"dw": self.given["x"], "dx": self.given["w"]}
        chosen = tuple(i for i in GRADIENTS if i in self.wanted or taking.get(i) is not None)
        operation = backward(self.name, self.is_mask, chosen, self.added)
        return kinds.element(operation, [self._kind(i) for i in operation.inputs])

    def _kind(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.outputs[name]

    def implementation(self) -> Callable[..., Any]:
        operation = backward(self.name, self.is_mask, self.wanted, self.added)
        before, after = self._batch_lines() if self.is_flat else ("", "")
        names = ["y" if i == "mask" else i for i in operation.operands]
        operands = [self._operand(i) for i in names]
        results = [self._result(i) for i in self.wanted]
        by_name = {i: f"r{number}" for number, i in enumerate(self.wanted)}
        if self.is_flat and "dx" in self.wanted and self.given["dy"].ndim != 2:
            if "dx" in self.outputs:
                after += assignment("out[0]", "r0.reshape(out[0].shape)")
                by_name["dx"] = "out[0]"
            else:
                by_name["dx"] = f"r0.reshape(({self._batch_shape()}w.shape[0],))"
        arrays = [(i, kind) for i, kind in self.given.items() if isinstance(kind, types.Array)]
        arrays += [(f"out[{GRADIENTS.index(i)}]", kind) for i, kind in self.outputs.items()]
        values = ["{}" if isinstance(kind, types.Array) else "None" if kind is None else "1" for kind in self.given.values()]
        outputs = ["{}" if i in self.outputs else "None" for i in GRADIENTS]
        call = f"fastrelu.{self.name}({', '.join(values)}, out=({', '.join(outputs)}), "
        return array_call(
            self.name,
            self.parameters,
            f"{operation.name} {as_dtype(self.dtype).name}",
            operands,
            results,
            call + f"wanted={self.wanted!r}, accumulate={self.added!r})",
            arrays,
            before=before,
            after=after,
            returned=", ".join(by_name.get(i, "None") for i in GRADIENTS),
        )

    def _is_reshaped(self, name: str) -> bool:
        return self.is_flat and name in ("dy", "y", "x", "dx") and self.given["dy"].ndim != 2

    def _batch_shape(self) -> str:
        return "".join(f"dy.shape[{axis}], " for axis in range(self.given["dy"].ndim - 1))

    def _operand(self, name: str) -> Operand:
        kind = self._kind(name)
        is_bits = name == "y" and self.is_mask
        expression = name if name in self.given else f"out[{GRADIENTS.index(name)}]"
        if self._is_reshaped(name):
            expression, kind = f"flat_{name}", types.Array(kind.dtype, 2, "C")
        return Operand(expression, kind, types.uint8 if is_bits else self.dtype)

    def _result(self, name: str) -> Result:
        kind, axes = self.outputs.get(name), 1 if name == "db" else 2
        if not self.is_flat:
            batches = [kind.ndim - 2 for i, kind in self.given.items() if i != "alpha" and isinstance(kind, types.Array)]
            axes += max(batches) if kind is None else kind.ndim - axes
        if self._is_reshaped(name):
            kind = None
        return Result(f"out[{GRADIENTS.index(name)}]", kind, self.dtype, axes)

    def _batch_lines(self) -> tuple[str, str]:
        """Lines that check the batch axes, and make one of them."""
        dy = self.given["dy"]
        others = [i for i in ("y", "x") if self.given.get(i) is not None]
        lines = "".join(f"    if {i}.shape[:-1] != dy.shape[:-1]:\n        CALL\n" for i in others)
        if self.given["w"] is not None:
            lines += "    if w.shape[1] != dy.shape[-1]:\n        CALL\n"
            if self.given["x"] is not None:
                lines += "    if w.shape[0] != x.shape[-1]:\n        CALL\n"
        if "dx" in self.outputs and dy.ndim != 2:
            if self.outputs["dx"].ndim != dy.ndim:
                kinds.fail(self.name, "out for dx", self.outputs["dx"], f"an array of as many axes as dy, {dy.ndim}")
            lines += "    if out[0].shape[:-1] != dy.shape[:-1] or out[0].shape[-1] != w.shape[0]:\n        CALL\n"
        if dy.ndim == 2:
            return lines, ""
        lines += f"    rows = {' * '.join(['1', *(f'dy.shape[{axis}]' for axis in range(dy.ndim - 1))])}\n"
        flat = [("dy", "dy"), *((i, i) for i in others)]
        if "dx" in self.added:
            flat.append(("dx", "out[0]"))
        for i, expression in flat:
            lines += f"    flat_{i} = np.ascontiguousarray({expression}).reshape((rows, {expression}.shape[-1]))\n"
        return lines, ""
