"""Kernel sources to object code with Numba. Imported only when the cache does not hold what is asked for."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, wraps

from llvmlite import ir
from numba.core import codegen, compiler, config, registry, types
from numba.core.compiler_lock import global_compiler_lock


class UnresolvedSymbol(RuntimeError):
    """A kernel needs a function that only a running Numba could provide; it would crash a process without."""


class _Library(codegen.JITCodeLibrary):
    """The code of one function. Numba optimises and assembles every function by itself, and then again where it is inlined;
    here only the whole is worth it, which takes 1.9 s instead of 2.8 for the first loop of a process. Simplifying single
    functions first takes a tenth of the time, but without it pooling by 3 x 3 took 1.2 to 1.5 times as long.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalized = True

    def optimize(self):
        """Optimise the module once everything is linked into it, and return it.

        Only the function that the library is named after can be seen from outside. Numba numbers functions in the order in
        which a process compiles them: objects of two processes would have different functions of the same name.
        """
        module = self._final_module
        for value in (*module.functions, *module.global_variables):
            if not value.is_declaration and value.name != self.name:
                value.linkage = "internal"
        super()._optimize_final_module()
        return self._final_module


class _Codegen(codegen.JITCPUCodegen):
    """Numba's generator for this processor, with libraries that are not run in this process."""

    _library_class = _Library

    def set_env(self, env_name, env):
        pass


_codegen = cache(lambda: _Codegen("fastrelu"))


def _locked(function: Callable) -> Callable:
    """Let `function` run with Numba's lock, after the making of the context: who makes that waits for the lock, and one that
    had the lock would wait for the context.
    """

    @wraps(function)
    def run(*arguments):
        registry.cpu_target.target_context  # noqa: B018  # made here
        with global_compiler_lock:
            return function(*arguments)

    return run


@_locked
def compile_object(source: Callable, name: str, allowed: frozenset[str]) -> bytes:
    """Compile what `source` returns, a function and its signature, to an object file that exports the C function `name`.

    The object does not need Numba to run: it refers to nothing but the symbols in `allowed`. An exception in a kernel
    has nowhere to go, so kernels contain none.
    """
    module = _module(source, name)
    unresolved = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    unresolved |= {g.name for g in module.global_variables if g.is_declaration}
    if unresolved - allowed:
        raise UnresolvedSymbol(f"{name} refers to {sorted(unresolved - allowed)}")
    return _codegen()._tm.emit_object(module)


@_locked
def compile_assembly(source: Callable, name: str) -> str:
    """The same as assembly, to look at: a kernel below the machine's limit shows there what it spends its time on."""
    return _codegen()._tm.emit_assembly(_module(source, name))


def _module(source: Callable, name: str):
    context = registry.cpu_target.target_context
    context.refresh()
    with _settings(context):
        return _library(context, *source(), name).optimize()


@contextmanager
def _settings(context):
    """Numba's settings as kernels need them, put back at the end.

    ``NUMBA_DISABLE_JIT`` is meant for functions that can run as Python, which kernels cannot. Nothing calls the C wrapper that
    Numba makes of every function: without these a fused layer compiles in six sevenths of the time.
    """
    before = config.DISABLE_JIT, context._internal_codegen, context.cached_internal_func
    config.DISABLE_JIT, context._internal_codegen, context.cached_internal_func = 0, _codegen(), {}
    context.create_cfunc_wrapper = lambda *_: None
    try:
        yield
    finally:
        config.DISABLE_JIT, context._internal_codegen, context.cached_internal_func = before
        del context.create_cfunc_wrapper


def _library(context, function: Callable, signature, name: str) -> _Library:
    """Compile `function` with a C function `name` around it, which drops Numba's status code."""
    flags = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    typing_context = registry.cpu_target.typing_context
    compiled = compiler.compile_extra(typing_context, context, function, signature.args, signature.return_type, flags, {})
    library = context.codegen().create_library(name)
    module = library.create_ir_module(name)
    words = [context.get_value_type(t) for t in signature.args]
    is_void = signature.return_type == types.void
    result = ir.VoidType() if is_void else context.get_value_type(signature.return_type)
    entry = ir.Function(module, ir.FunctionType(result, words), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    callee = context.declare_function(module, compiled.fndesc)
    _, value = context.call_conv.call_function(builder, callee, signature.return_type, signature.args, entry.args)
    builder.ret_void() if is_void else builder.ret(value)
    library.add_ir_module(module)
    library.add_linking_library(compiled.library)
    library.finalize()
    return library
