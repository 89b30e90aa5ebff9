"""Kernel sources to object code with Numba. Imported only when the cache does not hold what is asked for."""

from collections.abc import Callable

from llvmlite import ir
from numba.core import compiler, registry, types
from numba.core.compiler_lock import global_compiler_lock


class UnresolvedSymbol(RuntimeError):
    """A kernel needs a function that only a running Numba could provide; it would crash a process without."""


@global_compiler_lock
def compile_object(function: Callable, signature, name: str, allowed: frozenset[str]) -> bytes:
    """Compile `function` to an object file that exports it as the C function `name`.

    The object does not need Numba to run: it refers to nothing but the symbols in `allowed`. An exception in a kernel
    has nowhere to go, so kernels contain none.
    """
    target = registry.cpu_target
    context = target.target_context
    context.refresh()
    flags = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    compiled = compiler.compile_extra(
        target.typing_context, context, function, signature.args, signature.return_type, flags, {}
    )
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
    final = library._final_module
    unresolved = {f.name for f in final.functions if f.is_declaration and not f.name.startswith("llvm.")}
    unresolved |= {g.name for g in final.global_variables if g.is_declaration}
    if unresolved - allowed:
        raise UnresolvedSymbol(f"{name} refers to {sorted(unresolved - allowed)}")
    return library._codegen._tm.emit_object(final)
