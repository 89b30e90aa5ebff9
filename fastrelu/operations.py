"""The operations, the fused layers and their gradients: operands, types, and the loop that each choice of types needs.

These tables are all that the ufuncs, the benchmarks and the tests know of them; importing them needs only NumPy.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

KC = 256
"""Terms of a block of a sum: each block is one chain of additions, and the blocks are added in ascending order."""

HALVES = ("float16", "bfloat16")
FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@dataclass(frozen=True, eq=False, repr=False)
class Loop:
    """What a loop is compiled for.

    Attributes
    ----------
    formula : str
        Its name in `fastrelu.kernels.formulas`.
    dtypes : tuple of str
        Names of the element types of the inputs and, last, of the output.
    parameter : int
        The number of the input that is often a single value (``alpha``); -1 if there is none.
    arithmetic : bool
        Whether the formula calculates, so that halves are widened; else it only compares and selects.
    grain : int
        Elements below which a part is not worth handing to another thread.
    vector_bytes : int
        Width of the host's vectors.
    """

    formula: str
    dtypes: tuple[str, ...]
    parameter: int
    arithmetic: bool
    grain: int
    vector_bytes: int

    @property
    def name(self) -> str:
        """What the compiled loop is called."""
        return f"fastrelu_{self.formula}_{'_'.join(self.dtypes)}_{self.vector_bytes}"


@dataclass(frozen=True, eq=False, repr=False)
class Fused:
    """What the loop of a fused layer, y = f(x @ w + b), is compiled for.

    Attributes
    ----------
    formula : str
        f, by its name in `fastrelu.kernels.formulas`; "" for the identity.
    dtypes : tuple of str
        Names of the element types of x, w, b, alpha (those of b and alpha only where they are operands) and y.
    has_bias, has_alpha : bool
        Whether there is a bias; whether f has a parameter.
    alpha_is_row : bool
        Whether the parameter has a value for each column, else it is a single one.
    packed : bool
        Whether w is prepacked.
    mask : bool
        Whether the bits of y > 0 are written as well.
    vector_bytes : int
        Width of the host's vectors.
    """

    formula: str
    dtypes: tuple[str, ...]
    has_bias: bool
    has_alpha: bool
    alpha_is_row: bool
    packed: bool
    mask: bool
    vector_bytes: int

    @property
    def name(self) -> str:
        """What the compiled loop is called."""
        options = ("bias", self.has_bias), ("row", self.alpha_is_row), ("packed", self.packed), ("mask", self.mask)
        chosen = "".join(f"_{option}" for option, given in options if given)
        return f"fastrelu_linear_{self.formula}{chosen}_{self.dtypes[0]}_{self.vector_bytes}"


GRADIENTS = ("dx", "dw", "db")
"""What the backward pass of a layer calculates."""


@dataclass(frozen=True, eq=False, repr=False)
class Gradient:
    """What the loop of the backward pass of a fused layer is compiled for.

    Attributes
    ----------
    formula : str
        dz from dy and y, by its name in `fastrelu.kernels.formulas`; "" if it is dy.
    dtype : str
        Name of the element type.
    dtypes : tuple of str
        Those of all operands.
    has_alpha, mask : bool
        Whether the formula has a parameter; whether the bits of y > 0 take the place of y.
    wanted, added : tuple of str
        The gradients to calculate, and those of them that are added to what is given.
    vector_bytes : int
        Width of the host's vectors.
    """

    formula: str
    dtype: str
    dtypes: tuple[str, ...]
    has_alpha: bool
    mask: bool
    wanted: tuple[str, ...]
    added: tuple[str, ...]
    vector_bytes: int

    @property
    def name(self) -> str:
        """What the compiled loop is called."""
        kind = f"{self.formula}{'_mask' * self.mask}"
        return f"fastrelu_{kind}_{'_'.join(self.wanted)}_to_{'_'.join(self.added)}_{self.dtype}_{self.vector_bytes}"


@dataclass(frozen=True, eq=False, repr=False)
class Operation:
    """An elementwise operation.

    Attributes
    ----------
    name : str
        The public function, and the formula unless `formula` names another.
    inputs : tuple of str
        Names of the operands.
    parameter : int
        The number of the input that is a parameter rather than data; -1 if there is none.
    arithmetic : bool
        Whether it calculates. An operation that only selects works on every integer type as well.
    grain : int
        Elements of float32 below which a part is not worth handing to another thread, measured.
    formula : str
        The name of the formula.
    whole : tuple of str
        Operands for which a Python float such as 0.0 counts as an integer, which fits every type.
    """

    name: str
    inputs: tuple[str, ...]
    parameter: int = -1
    arithmetic: bool = True
    grain: int = 4096
    formula: str = ""
    whole: tuple[str, ...] = ()

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the element types it has loops for."""
        return FLOATS if self.arithmetic else FLOATS + INTEGERS

    @cached_property
    def types(self) -> list[str]:
        """The loops in the notation of `numpy.ufunc.types`: ``ff->f``. bfloat16 has no letter and is not among them."""
        rows = (self.loop(name, 0).dtypes for name in self.dtypes if name != "bfloat16")
        return ["{}->{}".format("".join(np.dtype(t).char for t in row[:-1]), np.dtype(row[-1]).char) for row in rows]

    def loop(self, dtype: str, vector_bytes: int) -> Loop:
        """The loop for data of `dtype`; a parameter of an operation that calculates on halves is float32."""
        types = [dtype] * (len(self.inputs) + 1)
        if self.parameter >= 0 and self.arithmetic and dtype in HALVES:
            types[self.parameter] = "float32"
        return Loop(self.formula or self.name, tuple(types), self.parameter, self.arithmetic, self.grain, vector_bytes)


_MEMORY = 16384
"""The grain of operations that take no longer than reading and writing their elements."""

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("relu", ("x",), arithmetic=False, grain=_MEMORY),
        Operation("relu_derivative", ("x", "at_zero"), parameter=1, arithmetic=False, grain=_MEMORY, whole=("at_zero",)),
        Operation("relu_backward", ("dy", "y"), arithmetic=False, grain=_MEMORY),
        Operation("leaky_relu", ("x", "alpha"), parameter=1, grain=_MEMORY),
        Operation("leaky_relu_backward", ("dy", "y", "alpha"), parameter=2, grain=_MEMORY),
        Operation("prelu", ("x", "alpha"), parameter=1, grain=_MEMORY, formula="leaky_relu"),
        Operation("prelu_backward", ("dy", "x", "alpha"), parameter=2, grain=_MEMORY, formula="leaky_relu_backward"),
        Operation("prelu_alpha_gradient", ("dy", "x"), grain=_MEMORY),
        Operation("elu", ("x", "alpha"), parameter=1),
        Operation("elu_backward", ("dy", "y", "alpha"), parameter=2, grain=_MEMORY),
        Operation("sigmoid", ("x",)),
        Operation("sigmoid_backward", ("dy", "y"), grain=_MEMORY),
        Operation("tanh", ("x",)),
        Operation("tanh_backward", ("dy", "y"), grain=_MEMORY),
        Operation("softplus", ("x",)),
        Operation("softplus_backward", ("dy", "y")),
    )
}


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A fused layer, f(x @ w + b), as one of its generalized ufuncs.

    Attributes
    ----------
    base : str
        The public function.
    formula : str
        f, by the name of its formula; "" for the identity.
    alpha : str
        Core dimensions of the parameter of f: "()" for one value, "(n)" for one a column, "" if there is none.
    bias, packed, mask : bool
        Whether there is a bias; whether w is prepacked; whether the bits of y > 0 are an output.
    """

    base: str
    formula: str
    alpha: str = ""
    bias: bool = True
    packed: bool = False
    mask: bool = False

    arithmetic = True
    dtypes = FLOATS

    @cached_property
    def name(self) -> str:
        """What the ufunc is called: that of the public function is the one with a bias."""
        options = ("_no_bias", not self.bias), ("_packed", self.packed), ("_mask", self.mask)
        return self.base + "".join(option for option, given in options if given)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the operands."""
        return ("x", "w", *["b"] * self.bias, *["alpha"] * bool(self.alpha))

    @cached_property
    def parameter(self) -> int:
        """The number of alpha; -1 if there is none."""
        return len(self.inputs) - 1 if self.alpha else -1

    @cached_property
    def signature(self) -> str:
        """The core dimensions."""
        operands = ["(k)", "(k,n)", *["(n)"] * self.bias, *[self.alpha] * bool(self.alpha)]
        return ",".join(operands) + "->(n)" + ",(q)" * self.mask

    @cached_property
    def types(self) -> list[str]:
        """The loops in the notation of `numpy.ufunc.types`."""
        rows = (self.loop(name, 0).dtypes for name in self.dtypes if name != "bfloat16")
        return ["{}->{}".format("".join(np.dtype(t).char for t in row[:-1]), np.dtype(row[-1]).char) for row in rows]

    def loop(self, dtype: str, vector_bytes: int) -> Fused:
        """The loop for data of `dtype`; alpha, and a prepacked w, are float32 beside halves."""
        wide = "float32" if dtype in HALVES else dtype
        dtypes = (dtype, wide if self.packed else dtype, *[dtype] * self.bias, *[wide] * bool(self.alpha), dtype)
        return Fused(
            self.formula, dtypes, self.bias, bool(self.alpha), self.alpha == "(n)", self.packed, self.mask, vector_bytes
        )


def _variants(base: str, formula: str, alpha: str = "") -> list[Layer]:
    masks = (False, True) if base == "linear_relu" else (False,)
    return [
        Layer(base, formula, alpha, bias, packed, mask) for bias in (True, False) for packed in (False, True) for mask in masks
    ]


LAYERS = {
    layer.name: layer
    for layers in (
        _variants("linear", ""),
        _variants("linear_relu", "relu"),
        _variants("linear_leaky_relu", "leaky_relu", "()"),
        _variants("linear_prelu", "leaky_relu", "(n)"),
        _variants("linear_elu", "elu", "()"),
        _variants("linear_sigmoid", "sigmoid"),
        _variants("linear_tanh", "tanh"),
        _variants("linear_softplus", "softplus"),
    )
    for layer in layers
}


@dataclass(frozen=True)
class Backward:
    """The backward pass of a fused layer, as one of its generalized ufuncs.

    Attributes
    ----------
    base : str
        The public function.
    formula : str
        dz from dy and y, by the name of its formula; "" if it is dy.
    alpha : str
        Core dimensions of the parameter of the formula: "()", or "" if there is none.
    mask : bool
        Whether the bits of y > 0 take the place of y.
    wanted, added : tuple of str
        The gradients to calculate, and those of them that are added to an operand.
    """

    base: str
    formula: str
    alpha: str = ""
    mask: bool = False
    wanted: tuple[str, ...] = GRADIENTS
    added: tuple[str, ...] = ()

    arithmetic = True
    dtypes = FLOATS

    @cached_property
    def name(self) -> str:
        """What the ufunc is called: that of the public function is the one that calculates everything from y."""
        wanted = "" if self.wanted == GRADIENTS else "_only_" + "_".join(self.wanted)
        return self.base + "_mask" * self.mask + wanted + "_to" * bool(self.added) + "".join(f"_{g}" for g in self.added)

    @cached_property
    def operands(self) -> dict[str, str]:
        """Core dimensions of the inputs."""
        cores = {"dx": "(m,k)", "dw": "(k,n)", "db": "(n)"}
        operands = {"dy": "(m,n)"}
        if self.formula:
            operands["mask" if self.mask else "y"] = "(m,q)" if self.mask else "(m,n)"
        if "dw" in self.wanted:
            operands["x"] = "(m,k)"
        if "dx" in self.wanted:
            operands["w"] = "(k,n)"
        if self.alpha:
            operands["alpha"] = self.alpha
        return operands | {gradient: cores[gradient] for gradient in self.added}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the operands that have the type of the data or, as alpha, a related one: all but the mask."""
        return tuple(name for name in self.operands if name != "mask")

    @cached_property
    def parameter(self) -> int:
        """The number of alpha among them; -1 if there is none."""
        return self.inputs.index("alpha") if self.alpha else -1

    @property
    def nin(self) -> int:
        """Number of operands."""
        return len(self.operands)

    @cached_property
    def signature(self) -> str:
        """The core dimensions."""
        cores = {"dx": "(m,k)", "dw": "(k,n)", "db": "(n)"}
        return ",".join(self.operands.values()) + "->" + ",".join(cores[gradient] for gradient in self.wanted)

    def loop(self, dtype: str, vector_bytes: int) -> Gradient:
        """The loop for data of `dtype`; alpha is float32 beside halves."""
        special = {"mask": "uint8", "alpha": "float32" if dtype in HALVES else dtype}
        dtypes = tuple(special.get(name, dtype) for name in self.operands) + (dtype,) * len(self.wanted)
        return Gradient(self.formula, dtype, dtypes, bool(self.alpha), self.mask, self.wanted, self.added, vector_bytes)


BACKWARD = {
    backward.name: backward
    for backward in (
        Backward("linear_backward", ""),
        Backward("linear_relu_backward", "relu_backward"),
        Backward("linear_leaky_relu_backward", "leaky_relu_backward", "()"),
        Backward("linear_elu_backward", "elu_backward", "()"),
        Backward("linear_sigmoid_backward", "sigmoid_backward"),
        Backward("linear_tanh_backward", "tanh_backward"),
        Backward("linear_softplus_backward", "softplus_backward"),
    )
}


@cache
def backward(base: str, mask: bool, wanted: tuple[str, ...], added: tuple[str, ...]) -> Backward:
    """The variant of a backward pass that takes bits for y, calculates some of the gradients, and adds some of these."""
    return replace(BACKWARD[base], mask=mask, wanted=wanted, added=added)


@cache
def backward_variants() -> dict[str, Backward]:
    """All of them, by name."""
    subsets = [tuple(g for i, g in enumerate(GRADIENTS) if bits >> i & 1) for bits in range(8)]
    variants = (
        backward(base, mask, wanted, added)
        for base in BACKWARD
        for mask in ((False, True) if base == "linear_relu_backward" else (False,))
        for wanted in subsets[1:]
        for added in subsets
        if set(added) <= set(wanted)
    )
    return {variant.name: variant for variant in variants}
