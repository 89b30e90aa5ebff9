"""The package's functions inside functions that Numba compiles.

Numba finds `register` by itself, through the entry point ``numba_extensions`` of the installed package, before it compiles or
loads anything: the order of imports does not matter. What is said here once holds for all:

* Activations and their gradients take numbers and arrays, the layers arrays of float32 and float64. Results have the bits that
  the same call has from Python. Shapes, broadcasting, ``out`` (of any overlap), bit masks, ``wanted`` and ``accumulate`` are
  as there; ``where``, ``dtype`` and the other keywords of NumPy's ufuncs, float16, lists and packed weights are not offered.
* Numbers become part of the caller's machine code: a formula is inlined, and LLVM can vectorise a loop around it. Arrays go to
  the same machine code as from Python, with its threads; a call costs no Python.
* A number beside arrays does not change the type of the result, like a Python number; ``wanted`` and ``accumulate`` are
  written as tuples of literal strings, and in a `prange` loop within a compiled function of their own: Numba moves constants
  out of the loop, and then has forgotten what they are. Nor does Numba tell the value of a float: `at_zero` keeps an integer
  type as an int or as the default. From a `prange` loop, as all there, errors may get lost.
* Integers become float64 where a formula calculates, and float32 if they have 8 or 16 bits.
* The caller's ``cache=True``, ``nogil=True``, ``parallel=True``, ``fastmath`` and ``@cfunc`` work, and none of them changes a
  bit. Machine code in a cache of the caller's own finds the arrays' kernels by name when it first calls one; a formula
  on numbers is part of it, and like all inlined code stays as it was until that cache is renewed.
"""

from functools import cache

from fastrelu.native.guard import lock


@cache
def register() -> None:
    """Tell Numba of all functions. Called by Numba, mostly before it takes its own lock."""
    with lock:  # a fork amid these imports would leave their locks to the child, which would wait for ever
        from fastrelu.jit import elementwise, gradients, layers

        for module in (elementwise, layers, gradients):
            module.register()
