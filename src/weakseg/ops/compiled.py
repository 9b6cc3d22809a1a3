"""Compiled functions: the settings shared by all, and vectors of float32 inside them.

Numba turns loops over long arrays into vector instructions, but not the short ones over the few channels of a row
that is found through an index. A `Vector` holds such a row, as one value for the processor:

    zero = vector(lanes)                        # as many zeros as the tuple `lanes` has items: part of the type
    v = load(array, row, zero)                  # array[row]
    v = multiply_add(v, weight, other)          # v + weight * other
    store(array, row, v)                        # array[row] = v

`array` is float32 and C-contiguous, with rows as long as the vector. Indices are not checked.

Numba's disk cache does not see changes of what a function calls in another file: after a change here, delete
`__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as untyped_intrinsic
from numba.extending import models, register_model


def compiled(*, inner: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile without the interpreter lock; keep the machine code on disk where there is a place for it.

    `inner` functions are called from compiled ones only. Multiplication and addition do not fuse, unless `options`
    hold `fastmath={"contract"}`.
    """
    options |= {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": inner, "no_cfunc_wrapper": True}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=not inner, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(**options)(function)

    return decorate


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose machine code `function` writes; its first argument is not an argument of the result."""
    return untyped_intrinsic(function)


class Vector(types.Type):
    """`lanes` numbers of type float32."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.lanes))


def _address(context: Any, builder: Any, array_type: Any, array: Any, row: Any, kind: Vector) -> Any:
    index = builder.zext(row, ir.IntType(64)) if row.type.width < 64 else row
    first = cgutils.get_item_pointer(
        context,
        builder,
        array_type,
        context.make_array(array_type)(context, builder, array),
        [index, context.get_constant(types.intp, 0)],
        wraparound=False,
    )
    return builder.bitcast(first, context.get_value_type(kind).as_pointer())


@intrinsic
def vector(typing: Any, lanes: Any) -> Any:
    """As many zeros as the tuple `lanes` has items."""
    kind = Vector(len(lanes))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(kind), [0.0] * kind.lanes)

    return kind(lanes), generate


@intrinsic
def load(typing: Any, array: Any, row: Any, like: Any) -> Any:
    """array[row], a vector of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, array, arguments[0], arguments[1], like), align=4)

    return like(array, row, like), generate


@intrinsic
def store(typing: Any, array: Any, row: Any, value: Any) -> Any:
    """array[row] = value"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, array, arguments[0], arguments[1], value), align=4)
        return context.get_dummy_value()

    return types.none(array, row, value), generate


@intrinsic
def multiply_add(typing: Any, total: Any, factor: Any, value: Any) -> Any:
    """total + factor * value, for two vectors and a number; may be rounded once or twice."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, lane = context.get_value_type(value), ir.IntType(32)
        undefined = ir.Constant(kind, ir.Undefined)
        first_lane = builder.insert_element(undefined, arguments[1], ir.Constant(lane, 0))
        every_lane = ir.Constant(ir.VectorType(lane, value.lanes), [0] * value.lanes)
        factors = builder.shuffle_vector(first_lane, undefined, every_lane)
        product = builder.fmul(factors, arguments[2], flags=("contract",))
        return builder.fadd(arguments[0], product, flags=("contract",))

    return value(total, types.float32, value), generate


@intrinsic
def float_of_bits(typing: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate
