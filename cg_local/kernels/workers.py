"""Parallel regions: one small driver that calls kernels, compiled apart, by their address.

This file owns how work reaches the threads and what is shared out among them. It knows no kernel. Invariant: whatever
a worker does is compiled as a serial function, once; the driver holds nothing but the loop over workers.

Numba optimizes everything that a function with `parallel=True` calls again at each level of calls, and once more for
the parallel region: attention took 13 s that way. A worker is a function (pointer, worker) -> nothing, compiled for one
type of arguments: `pack` puts a tuple of them on the caller's stack, `load_arguments` takes it from there. Addresses
are looked up in each process, so the cache holds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import njit, prange, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from cg_local.kernels import quick_load
from cg_local.kernels.bits import INNER
from cg_local.kernels.llvm_vectors import I64

# How a worker is compiled: it is called by address alone, through the wrapper for C.
WORKER = {"nogil": True, "cache": True, "error_model": "numpy", "no_cpython_wrapper": True}
# Types of arguments that some worker was compiled for: a tuple of another type would be read as what it is not.
_known_arguments: set[types.Type] = set()


def worker_address(worker: Any, arguments: Sequence[types.Type]) -> int:
    """Return the address of a worker, compiled or loaded from the cache for these types of arguments.

    Args:
        worker: jitted with **WORKER.
        arguments: of the tuple that it loads.
    """
    packed = types.Tuple(tuple(arguments))
    _known_arguments.add(packed)
    signature = types.void(types.CPointer(packed), types.intp)
    quick_load.load_quickly(worker)
    worker.compile(signature)
    compiled = worker.overloads[signature.args]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


@intrinsic
def pack(typing_context, arguments):
    """Put a tuple into the caller's memory and return its address; what it refers to must be kept alive by others."""
    if arguments not in _known_arguments:
        raise TypingError(f"no worker was compiled for {arguments}")

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        with builder.goto_entry_block():
            place = builder.alloca(context.get_value_type(signature.args[0]))
        builder.store(values[0], place)
        return builder.ptrtoint(place, I64)

    return types.intp(arguments), generate


@intrinsic
def load_arguments(typing_context, pointer):
    """Return the tuple that `pack` left at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        kind = signature.return_type
        place = builder.bitcast(values[0], context.get_value_type(kind).as_pointer())
        loaded = builder.load(place)
        context.nrt.incref(builder, kind, loaded)
        return loaded

    return pointer.dtype(pointer), generate


@intrinsic
def call_worker(typing_context, address, arguments, worker):
    """Call the function (arguments, worker) at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def take(typing_context, counter, count):
    """Add `count` to the int64 at an address and return what was there before, as one operation for all threads."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        return builder.atomic_rmw("add", builder.inttoptr(values[0], I64.as_pointer()), values[1], "monotonic")

    return types.intp(types.intp, types.intp), generate


@njit(parallel=True, nogil=True, cache=True)
def call_in_parallel(address, arguments, num_workers):
    """Call a worker `num_workers` times at once, at most as often as Numba has threads."""
    for worker in prange(num_workers):
        call_worker(address, arguments, worker)


@njit(**INNER)
def run_workers(address, arguments, num_workers):
    """The same; a single worker runs in the calling thread, which spares waking another one.

    Args:
        address: from `worker_address`; arguments: from `pack`.
        num_workers: how many share the work.
    """
    if num_workers == 1:
        call_worker(address, arguments, 0)
    else:
        call_in_parallel(address, arguments, num_workers)
