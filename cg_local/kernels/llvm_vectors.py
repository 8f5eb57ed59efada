"""LLVM's vector types and the few vector operations that every generator of kernels needs.

This file owns names for types, constants, copies of a scalar, loops, and calls of LLVM intrinsics and of functions that
stand once in a module. It knows no processor. Invariant: nothing here depends on the machine that runs it.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

LoopBody = Callable[[ir.Value, list[ir.Value]], list[ir.Value]]


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Return the LLVM vector type of `count` elements."""
    return ir.VectorType(element, count)


def splat_constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector constant with the same value in every lane."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Copy a scalar into every lane of a new vector."""
    vector_type = vector(value.type, count)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(vector(I32, count), [0] * count))


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic by name, declaring it at its first use."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [operand.type for operand in operands]), name)
    return builder.call(function, operands)


def loop(
    builder: ir.IRBuilder, first: ir.Value, stop: ir.Value, step: int, carried: list[ir.Value], body: LoopBody
) -> list[ir.Value]:
    """Run body(index, carried) -> carried for index first, first + step, ... below stop; return the last carried."""
    entry, block, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed("<", first, stop), block, end)
    builder.position_at_end(block)
    index = builder.phi(I64)
    index.add_incoming(first, entry)
    phis = [builder.phi(value.type) for value in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, entry)
    results = body(index, phis)
    following = builder.add(index, ir.Constant(I64, step))
    index.add_incoming(following, builder.block)
    for phi, value in zip(phis, results, strict=True):
        phi.add_incoming(value, builder.block)
    last = builder.block
    builder.cbranch(builder.icmp_signed("<", following, stop), block, end)
    builder.position_at_end(end)
    merged = [builder.phi(value.type) for value in carried]
    for phi, value, result in zip(merged, carried, results, strict=True):
        phi.add_incoming(value, entry)
        phi.add_incoming(result, last)
    return merged


def call_shared(
    builder: ir.IRBuilder, name: str, arguments: list[ir.Value], emit: Callable[[ir.IRBuilder, list[ir.Value]], None]
) -> None:
    """Call a function of this name, which `emit` fills at its first use in a module.

    It is not inlined: a tile's code stands once, however many calls there are, which saves seconds of compilation.
    """
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = ir.Function(module, signature, name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        function.attributes.add("nounwind")
        inner = ir.IRBuilder(function.append_basic_block())
        emit(inner, list(function.args))
        inner.ret_void()
    builder.call(function, arguments)
