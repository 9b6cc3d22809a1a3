"""Compiled functions: the settings shared by all, and vectors of float32 inside them.

Numba turns loops over long arrays into vector instructions, but not the short ones over the few channels of a row
that is found through an index, and looking for such loops is most of what compiling takes. A `Vector` holds a few
numbers as one value for the processor:

    zero = vector(lanes)                        # as many zeros as the tuple `lanes` has items: part of the type
    v = load(array, position, zero)             # the numbers of `array` from that position on, in the order of memory
    store(array, position, v + weight * other)

Vectors add, subtract, multiply and divide like numbers, also with a number; comparisons give 1 where they hold and 0
elsewhere. Arrays are C-contiguous, float32 or int32, which is converted; positions are not checked.

Numba's disk cache does not see changes of what a function calls in another file: after a change here, delete
`__pycache__`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as untyped_intrinsic
from numba.extending import lower_builtin, models, register_model

NEWEST_NUMBA_KNOWN = (0, 68)
"""The last version whose internals are known to be those that `numba_internals.py` expects. Newer ones keep machine
code in their own way, which may mix up that of processes that compile the same function at the same moment."""

FLOAT, INT = ir.FloatType(), ir.IntType(32)


def compiled(*, inner: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile without the interpreter lock; keep the machine code on disk where there is a place for it.

    `inner` functions are called from compiled ones only. Multiplication and addition do not fuse, unless `options`
    hold `fastmath={"contract"}`.
    """
    # Stated even where it is off: else a function would fuse if the first to call it does.
    options = {"fastmath": False, **options}
    options |= {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": inner, "no_cfunc_wrapper": True}

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        if not inner:
            with suppress(RuntimeError):  # neither the package's folder nor the user's cache folder can be written
                if cache := _cache_class():
                    dispatcher._cache = cache(function)
                else:
                    dispatcher.enable_caching()  # what njit(cache=True) does
        return dispatcher

    return decorate


def _cache_class() -> Callable[[Callable[..., Any]], Any] | None:
    """The cache for many processes; None where numba's own has to do, as its parts are not those we know."""
    if numba.version_info[:2] > NEWEST_NUMBA_KNOWN:
        return None
    try:
        from weakseg.ops.numba_internals import SharedCache
    except ImportError:
        return None
    return SharedCache


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose machine code `function` writes; its first argument is not an argument of the result."""
    return untyped_intrinsic(function)


# Vectors and their arithmetic -----------------------------------------------------------------------------------------


class Vector(types.Type):
    """`lanes` numbers of type float32."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")

    @property
    def machine_type(self) -> Any:
        return ir.VectorType(FLOAT, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.machine_type)


def _constant(kind: Vector, value: float) -> Any:
    return ir.Constant(kind.machine_type, [value] * kind.lanes)


def _every(builder: Any, kind: Vector, value: Any) -> Any:
    """The number in every lane."""
    undefined = ir.Constant(kind.machine_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT, kind.lanes), [0] * kind.lanes))


@intrinsic
def vector(typing: Any, lanes: Any) -> Any:
    """As many zeros as the tuple `lanes` has items."""
    kind = Vector(len(lanes))
    return kind(lanes), lambda context, builder, signature, arguments: _constant(kind, 0)


def _operator(operation: Any, generate: Callable[..., Any]) -> None:
    """The operation for two vectors, and for a vector and a number; `generate` writes the machine code."""

    @infer_global(operation)
    class Typing(AbstractTemplate):
        def generic(self, arguments: Any, keywords: Any) -> Any:
            kinds = [kind for kind in arguments if isinstance(kind, Vector)]
            if len(arguments) == 2 and kinds:
                return signature(kinds[0], *(kind if isinstance(kind, Vector) else types.float32 for kind in arguments))
            return None

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = (
            value if isinstance(kind, Vector) else _every(builder, signature.return_type, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        return generate(builder, signature.return_type, *vectors)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(lower)


def _compare(sign: str) -> Any:
    def generate(builder: Any, kind: Vector, left: Any, right: Any) -> Any:
        return builder.select(builder.fcmp_ordered(sign, left, right), _constant(kind, 1), _constant(kind, 0))

    return generate


_operator(operator.add, lambda builder, kind, left, right: builder.fadd(left, right))
_operator(operator.sub, lambda builder, kind, left, right: builder.fsub(left, right))
_operator(operator.mul, lambda builder, kind, left, right: builder.fmul(left, right))
_operator(operator.truediv, lambda builder, kind, left, right: builder.fdiv(left, right))
_operator(operator.gt, _compare(">"))
_operator(operator.ge, _compare(">="))
_operator(operator.eq, _compare("=="))


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two numbers, lane by lane, where neither is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, a), generate


@intrinsic
def rounded(typing: Any, value: Any) -> Any:
    """The nearest integers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(value.machine_type, [value.machine_type])
        rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{value.lanes}f32")
        return builder.call(rint, arguments)

    return value(value), generate


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """2^exponent for integers -127 (which gives 0) … 127: the bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def every(number: int) -> Any:
            return ir.Constant(integers, [number] * exponent.lanes)

        integers = ir.VectorType(INT, exponent.lanes)
        biased = builder.add(builder.fptosi(arguments[0], integers), every(127))
        return builder.bitcast(builder.shl(biased, every(23)), exponent.machine_type)

    return exponent(exponent), generate


# Vectors in memory ----------------------------------------------------------------------------------------------------


def _items(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of an array's first item."""
    return context.make_array(array_type)(context, builder, array).data


def _address(builder: Any, items: Any, position: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(items, [position]), kind.as_pointer())


def _load(builder: Any, items: Any, position: Any, kind: Vector) -> Any:
    return builder.load(_address(builder, items, position, kind.machine_type), align=4)


def _store(builder: Any, items: Any, position: Any, kind: Vector, value: Any) -> None:
    builder.store(value, _address(builder, items, position, kind.machine_type), align=4)


def _offset(builder: Any, position: Any, more: int) -> Any:
    return builder.add(position, ir.Constant(position.type, more))


@intrinsic
def load(typing: Any, array: Any, position: Any, like: Any) -> Any:
    """A vector of the type of `like`: the numbers of the array from `position` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = _items(context, builder, array, arguments[0])
        if array.dtype != types.int32:
            return _load(builder, items, arguments[1], like)
        integers = _address(builder, items, arguments[1], ir.VectorType(INT, like.lanes))
        return builder.sitofp(builder.load(integers, align=4), like.machine_type)

    return like(array, types.intp, like), generate


@intrinsic
def store(typing: Any, array: Any, position: Any, value: Any) -> Any:
    """Write a vector to the array from `position` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = _items(context, builder, array, arguments[0])
        if array.dtype != types.int32:
            _store(builder, items, arguments[1], value, arguments[2])
        else:
            kind = ir.VectorType(INT, value.lanes)
            address = _address(builder, items, arguments[1], kind)
            builder.store(builder.fptosi(arguments[2], kind), address, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), generate


@intrinsic
def transpose(
    typing: Any, source: Any, position: Any, row: Any, target: Any, target_position: Any, target_row: Any, like: Any
) -> Any:
    """Read as many vectors as `like` has lanes, a power of two, and write them with rows and columns exchanged. `row`
    and `target_row` are how far apart the vectors lie."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        origin, position, row, destination, target_position, target_row, _ = arguments
        items, lanes = _items(context, builder, source, origin), like.lanes
        vectors = []
        for _ in range(lanes):
            vectors.append(_load(builder, items, position, like))
            position = builder.add(position, row)
        # In blocks of two by two, whose parts are again such blocks, the upper right and the lower left one change
        # places.
        step = lanes // 2
        while step:
            upper = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
            lower = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
            for i in range(lanes):
                if not i & step:
                    pair = vectors[i], vectors[i + step]
                    vectors[i], vectors[i + step] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(INT, lanes), order))
                        for order in (upper, lower)
                    )
            step //= 2
        items = _items(context, builder, target, destination)
        for value in vectors:
            _store(builder, items, target_position, like, value)
            target_position = builder.add(target_position, target_row)
        return context.get_dummy_value()

    return types.none(source, types.intp, types.intp, target, types.intp, types.intp, like), generate


# Sparse rows ----------------------------------------------------------------------------------------------------------
#
# A row of a sparse matrix has weights[row, k] in the columns columns[row, k], for every item k of the tuple `terms`.
# `table` has a vector for each column.


def _terms(context: Any, builder: Any, signature: Any, arguments: Any, kind: Vector) -> Any:
    """The weights of a row, and the positions of their columns' vectors."""
    _, columns_type, weights_type, _, terms = signature.args[:5]
    columns, weights = (
        _items(context, builder, *array) for array in ((columns_type, arguments[1]), (weights_type, arguments[2]))
    )
    first = builder.mul(arguments[3], ir.Constant(arguments[3].type, len(terms)))
    lanes = ir.Constant(ir.IntType(64), kind.lanes)
    for k in range(len(terms)):
        at = [_offset(builder, first, k)]
        column = builder.zext(builder.load(builder.gep(columns, at)), lanes.type)
        yield _every(builder, kind, builder.load(builder.gep(weights, at))), builder.mul(column, lanes)


@intrinsic
def gather(typing: Any, table: Any, columns: Any, weights: Any, row: Any, terms: Any, total: Any) -> Any:
    """total + Σ_k weights[row, k] * table[columns[row, k]]"""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items, result = _items(context, builder, table, arguments[0]), arguments[5]
        for weight, position in _terms(context, builder, signature, arguments, total):
            result = builder.fadd(result, builder.fmul(weight, _load(builder, items, position, total)))
        return result

    return total(table, columns, weights, types.intp, terms, total), generate


@intrinsic
def scatter(typing: Any, table: Any, columns: Any, weights: Any, row: Any, terms: Any, value: Any) -> Any:
    """table[columns[row, k]] += weights[row, k] * value, for all k; the columns of a row differ."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items = _items(context, builder, table, arguments[0])
        sums = []
        for weight, position in _terms(context, builder, signature, arguments, value):
            before = _load(builder, items, position, value)
            sums.append((position, builder.fadd(before, builder.fmul(weight, arguments[5]))))
        for position, after in sums:
            _store(builder, items, position, value, after)
        return context.get_dummy_value()

    return types.none(table, columns, weights, types.intp, terms, value), generate
