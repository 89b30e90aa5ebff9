"""What calls do on a device, worked out once for all calls of a kind.

What a call launches depends on the shapes, strides, types and alignments of its arrays, on whether outputs overlap operands, on
keywords and the device, and not on addresses. So an operation is a function that writes a plan: it is run on arrays that have a
`Place` for an address, and what it launches and which memory it takes is noted. The plan is kept, and a later call of the
kind fills in its addresses, takes new memory, and launches.

How an operation uses it::

    def _write(draft, name):
        x = draft.arrays["x"]
        y = draft.arrays.get("out") or draft.empty(x.shape, x.dtype)
        draft.launch(kernel, grid, x.pointer, y.pointer, x.size)
        return (y,)

    (y,) = run("relu", {"x": x}, {"out": out}, _write, "relu")
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastrelu.cuda import launch
from fastrelu.cuda.arrays import DeviceArray, Work
from fastrelu.cuda.memory import PACKET
from fastrelu.cuda.owned import ITEMSIZES, ordered_strides
from fastrelu.native.guard import lock

KEPT = 4096
"""Plans that are kept; the oldest makes room for a new one."""
_LONGEST = 256
"""Launches of a plan that is kept: a loop over so many matrices takes its time anyway."""


@dataclass(frozen=True, order=True)
class Place:
    """An address that is not known yet: bytes behind the last multiple of 16 that an array does not begin before.

    Arrays that share memory are places in one of them, so that comparing places tells whether ranges of addresses meet.
    """

    array: int
    offset: int

    def __add__(self, nbytes: int) -> Place:
        return Place(self.array, self.offset + nbytes)

    def __mod__(self, size: int) -> int:
        """Of a size that divides 16."""
        return self.offset % size


class Number(NamedTuple):
    """An operand that is a number, and not known yet, as an argument of a kernel."""

    operand: str
    convert: Callable[[Any], float]

    def then(self, convert: Callable[[float], float]) -> Number:
        """The same, converted once more."""
        before = self.convert
        return Number(self.operand, lambda value: convert(before(value)))


class _Layout(NamedTuple):
    """What a plan knows of an array."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """Bytes behind the last multiple of 16."""


class _Kind(NamedTuple):
    """What a plan is for.

    Attributes
    ----------
    write, how
        The function that writes it, and what it is told besides.
    layouts
        The arrays of a call.
    numbers
        Of operands that are numbers, names and types: "int" and "float" for Python's.
    shared
        Of arrays that share memory with an output: the array's number, that of the first of those that share it, and how many
        bytes it begins behind that.
    using, device
        The driver, and the device's number.
    """

    write: Callable[..., tuple[DeviceArray, ...]]
    how: tuple[Hashable, ...]
    layouts: tuple[tuple[Any, ...], ...]
    numbers: tuple[tuple[str, str], ...]
    shared: tuple[tuple[int, int, int], ...]
    using: launch.Driver
    device: int


class _Step(NamedTuple):
    """A launch.

    Attributes
    ----------
    function, grid
        What the driver is told.
    arguments
        Those that are known; of others anything.
    places
        Addresses to fill in: the argument's number, the array's, and bytes behind where this begins.
    numbers
        Numbers to fill in: the argument's number, and the number's.
    taken, left
        New arrays that no step before has used, and those that none will use later.
    """

    function: Any
    grid: launch.Grid
    arguments: tuple[Any, ...]
    places: tuple[tuple[int, int, int], ...]
    numbers: tuple[tuple[int, int], ...]
    taken: tuple[int, ...]
    left: tuple[int, ...]


_New = tuple[tuple[int, ...], str, "tuple[int, ...] | None"]
"""Shape, type and order of the axes of a new array."""


class Draft:
    """A plan while it is being written. An operation takes it for a `fastrelu.cuda.arrays.Work`.

    Attributes
    ----------
    arrays : dict of str to DeviceArray
        The arrays of the call. Their addresses are places, and nobody owns them.
    numbers : dict of str to str
        The types of operands that are numbers: "int" and "float" for Python's.
    device : int
        The device's number.
    stream : int
        0: that of the call is not known.
    precision : str
        How exact products of matrices must be; "highest" unless the operation says otherwise.
    made : dict
        What the parts of an operation calculate once for each other.
    """

    stream = 0

    def __init__(self, kind: _Kind) -> None:
        self._kind = kind
        self.device = kind.device
        self.numbers = dict(kind.numbers)
        self.precision = "highest"
        self.made: dict[Any, Any] = {}
        layouts = [_Layout(*layout) for layout in kind.layouts]
        places = [Place(i, layout.offset) for i, layout in enumerate(layouts)]
        for i, first, distance in kind.shared:
            places[i] = places[first] + distance
        self.arrays = {
            name: self._array(place, shape, strides, dtype)
            for place, (name, dtype, shape, strides, _) in zip(places, layouts, strict=True)
        }
        self._numbered = [*self.arrays.values()]
        self._new: list[_New] = []
        self._launches: list[tuple[launch.Kernel, launch.Grid, tuple[Any, ...]]] = []

    def _array(self, place: Place, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> DeviceArray:
        return DeviceArray(place, shape, strides, dtype, self.device, self.stream, True, None)

    def empty(self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None = None) -> DeviceArray:
        """A new array of the caller's library, as `Work.empty` makes it; all begin at multiples of 16."""
        self._new.append((shape, dtype, order))
        strides = ordered_strides(shape, ITEMSIZES[dtype], order)
        array = self._array(Place(len(self._numbered), 0), shape, strides, dtype)
        self._numbered.append(array)
        return array

    def scratch(self, nbytes: int) -> DeviceArray:
        """Memory for this call."""
        return self.empty((nbytes,), "uint8")

    def launch(self, kernel: launch.Kernel, grid: launch.Grid, *arguments: Any) -> None:
        """Launch a kernel, of whose arguments some may be a `Place` or a `Number`."""
        if 0 not in grid:
            self._launches.append((kernel, grid, arguments))

    def plan(self, results: tuple[DeviceArray, ...]) -> Plan:
        """What has been written."""
        kept = [next(i for i, array in enumerate(self._numbered) if array is result) for result in results]
        given = len(self._kind.layouts)
        used = [{a.array for a in arguments if isinstance(a, Place) and a.array >= given} for _, _, arguments in self._launches]
        first = {array: i for i, its in reversed([*enumerate(used)]) for array in its if array not in kept}
        last = {array: i for i, its in enumerate(used) for array in its if array not in kept}
        numbers: list[Number] = []
        steps = []
        for i, (kernel, grid, arguments) in enumerate(self._launches):
            places, filled = [], []
            for at, argument in enumerate(arguments):
                if isinstance(argument, Place):
                    places.append((at, argument.array, argument.offset))
                elif isinstance(argument, Number):
                    filled.append((at, len(numbers)))
                    numbers.append(argument)
            taken, left = (tuple(array for array in used[i] if when.get(array) == i) for when in (first, last))
            function = kernel.on(self._kind.using, self.device)
            steps.append(_Step(function, grid, arguments, tuple(places), tuple(filled), taken, left))
        return Plan(self._new, steps, numbers, kept)


class Plan:
    """What calls of a kind do: launches, and memory for them.

    Parameters
    ----------
    new : list
        The arrays that are made.
    steps : list
        The launches.
    numbers : list of Number
        Arguments that operands are converted to.
    results : list of int
        The arrays to return: those of the call are numbered first, and then the new ones.
    """

    def __init__(self, new: list[_New], steps: list[_Step], numbers: list[Number], results: list[int]) -> None:
        self.new, self.steps, self.numbers, self.results = new, steps, numbers, results

    def run(self, using: launch.Driver, work: Work) -> list[Any]:
        """Do it for a call; returns the results, the library's arrays."""
        arrays, new = [*work.arrays.values()], len(self.new)
        given = len(arrays)
        owners = [array.owner for array in arrays] + [None] * new
        starts = [array.pointer - array.pointer % PACKET for array in arrays] + [0] * new
        values = [number.convert(work.numbers[number.operand]) for number in self.numbers]
        for i in self.results:
            if i >= given:
                owners[i], starts[i] = work.make(*self.new[i - given])
        for function, grid, known, places, numbers, taken, left in self.steps:
            for i in taken:
                owners[i], starts[i] = work.make(*self.new[i - given])
            arguments = [*known]
            for at, i, offset in places:
                arguments[at] = starts[i] + offset
            for at, i in numbers:
                arguments[at] = values[i]
            using.launch(function, grid, work.stream, arguments)
            for i in left:
                owners[i] = None
        return [owners[i] for i in self.results]


_plans: dict[tuple[Any, ...], Plan] = {}


def clear() -> None:
    """Forget all plans."""
    _plans.clear()


def run(
    base: str,
    operands: Mapping[str, Any],
    outputs: Mapping[str, Any],
    write: Callable[..., tuple[DeviceArray, ...]],
    *how: Hashable,
) -> tuple[Any, ...]:
    """Do what an operation does to arrays on a device.

    Parameters
    ----------
    base, operands, outputs
        The call, as for `fastrelu.cuda.arrays.Work`.
    write : function (Draft, ...) -> tuple of DeviceArray
        Writes the plan, and returns the results: arrays of the call, or new ones. Its errors are those of the call.
    *how : hashable
        Its other arguments.

    Returns
    -------
    tuple of array
        The results, of the library of the first array.
    """
    with Work(base, operands, outputs) as work:
        using = launch.active()
        layouts = tuple([(n, a.dtype, a.shape, a.strides, a.pointer % PACKET) for n, a in work.arrays.items()])
        numbers = tuple([(name, kind_of(number)) for name, number in work.numbers.items()])
        kind = write, how, layouts, numbers, work.shared(), using, work.device
        plan = _plans.get(kind)
        if plan is None:
            draft = Draft(_Kind(*kind))
            plan = draft.plan(write(draft, *how))
            if len(plan.steps) <= _LONGEST:
                with lock:
                    while len(_plans) >= KEPT:
                        del _plans[next(iter(_plans))]
                    _plans[kind] = plan
        results = plan.run(using, work)
    return tuple([work.handed_over(result) for result in results])


def kind_of(number: Any) -> str:
    """The type of a number: "int" and "float" for Python's."""
    kind = type(number)
    return kind.__name__ if kind in (int, float) else str(number.dtype.name)
