"""Random walks that spread class maps between neighbouring pixels: AffinityNet's and IRNet's, as one sparse product.

J. Ahn, S. Kwak, *Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation*, CVPR 2018 (arXiv 1803.10464); J. Ahn, S. Cho, S. Kwak, *Weakly Supervised Learning of Instance
Segmentation with Inter-pixel Relations*, CVPR 2019 (arXiv 1904.05044).

    B = A^β elementwise, A symmetric with A_ii = 1,    T = B / colsum(B),    y = x · T^t

T links a pixel to its neighbours within a radius only, so x is multiplied by the sparse T t times instead of squaring
the dense N × N matrix log₂ t times: the same product in another order. A step is a local average in difference form,

    x'_j = x_j + Σ_i B_ij (x_i - x_j) / Σ_i B_ij,

in which rounding has no bias: a constant stays exactly constant in float32 over any number of steps.

A walk with restart goes back to where it began with probability r at each step, so that it stays near x where nothing
stops it (Tong, Faloutsos, Pan, *Fast Random Walk with Restart and Its Applications*, ICDM 2006):

    y_(k+1) = (1 - r) y_k · T + r x,    y_0 = x

Affinities are kept once per pair: `affinities[p, y, x]` is the one of the pixels (y, x) and (y + dy, x + dx), where
(dy, dx) is `pair_offsets(radius)[p]`. Pairs that do not exist have 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.ops.compiled import compiled

BLOCK = 1024  # pixels that are worked on together: the flows of a few maps stay in the L1 cache
MAX_WINDOW_VALUES = 1 << 27  # differences to all neighbours that are held at once where there is no compiled step
CHEBYSHEV_TAIL = 1e-7  # sum of the coefficients left out

# From a padded state to the padded state one step on.
Step = Callable[[Tensor, Tensor], None]
# From a step, a padded state and a number of steps to the padded state that many steps on.
Power = Callable[[Step, Tensor, int], Tensor]


# Pairs and their affinities -------------------------------------------------------------------------------------------


def pair_offsets(radius: int) -> list[tuple[int, int]]:
    """The offsets (dy, dx) of pairs, each pair once: dy² + dx² < radius², and dy > 0, or dy = 0 and dx > 0.

    Ascending: the order of the rows of AffinityNet's affinities. 34 for radius 5, 152 for 10, none below 2.
    """
    reach = max(radius - 1, 0)
    half_plane = [(dy, dx) for dy in range(reach + 1) for dx in range(-reach, reach + 1) if (dy, dx) > (0, 0)]
    return [(dy, dx) for dy, dx in half_plane if dy**2 + dx**2 < radius**2]


def path(dy: int, dx: int) -> list[tuple[int, int]]:
    """The pixels (y, x) on the straight path from (0, 0) to (dy, dx), both included: those of the box of the two ends
    that lie less than one pixel from the line (IRNet, section 4)."""
    rows, columns = range(min(dy, 0), max(dy, 0) + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy**2 + dx**2]


def path_affinities(boundary: Tensor, radius: int = 5) -> Tensor:
    """IRNet's affinities (…, P, h, w) of all pairs within the image: 1 - the strongest boundary on the path.

    `boundary` (…, h, w) is a probability. Differentiable. Equation 4 of the paper.
    """
    height, width = boundary.shape[-2:]
    offsets = pair_offsets(radius)
    affinities = boundary.new_zeros(*boundary.shape[:-2], len(offsets), height, width)
    for pair, (dy, dx) in enumerate(offsets):
        rows, columns, left = height - dy, width - abs(dx), max(-dx, 0)
        if rows > 0 and columns > 0:
            on_path = [boundary[..., y : y + rows, left + x : left + x + columns] for y, x in path(dy, dx)]
            affinities[..., pair, :rows, left : left + columns] = 1 - torch.stack(on_path).amax(0)
    return affinities


def reduced_radius(size: tuple[int, int], radius: int = 5) -> int:
    """The radius that AffinityNet uses on a map of `size` (h, w): a smaller one where a side is below 2 · radius + 1.

    At 1 there are no pairs, and the walk changes nothing.
    """
    return radius if min(size) >= 2 * radius + 1 else max((min(size) - 1) // 2, 1)


def lopsided_affinities(affinities: Tensor, size: tuple[int, int], radius: int = 5) -> Tensor:
    """AffinityNet's affinities (…, P, n), placed on the map: (…, P, h, w).

    The upper (in one row, the left) pixel of each pair lies in a rectangle: with R = radius - 1, not in the R last
    rows, the R first or the R last columns. n = (h - R)(w - 2R) counts its pixels, row by row. All other pairs are
    missing, so that pixels have fewer neighbours towards the borders, the lower one most, and in corners none.
    """
    reach, pairs = max(radius - 1, 0), len(pair_offsets(radius))
    rows, columns = size[0] - reach, size[1] - 2 * reach
    if rows < 1 or columns < 1 or affinities.shape[-2:] != (pairs, rows * columns):
        raise WeaksegError(
            f"Affinities {tuple(affinities.shape)} do not fit a map of {size[0]} × {size[1]} with radius {radius}: "
            f"expected ({pairs}, {max(rows, 0)} · {max(columns, 0)}), none of them 0."
        )
    return F.pad(affinities.unflatten(-1, (rows, columns)), (reach, reach, 0, reach))


def raised_beta(affinities: Tensor, beta: float, most: float, radius: int = 5) -> float:
    """The least β ≥ `beta`, up to 4096, with which the mean of A^β over the pairs of a map is at most `most`.

    `affinities` (P, h, w) are those of `random_walk`. Where a network takes nearly all pixels to be alike, a walk
    levels everything; a larger β keeps it to the surest paths.
    """
    height, width = affinities.shape[-2:]
    if radius < 2:
        return beta
    values = affinities[_Grid(height, width, radius).exists(affinities.device)].double()
    low, high = beta, max(beta, 2.0**12)
    if values.pow(low).mean() <= most:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if values.pow(middle).mean() > most else (low, middle)
    return high


# The walk -------------------------------------------------------------------------------------------------------------


def boundary_walk(
    maps: Tensor,
    boundary: Tensor,
    *,
    radius: int = 5,
    beta: float = 10,
    steps: int = 256,
    restart: float = 0,
    chebyshev: bool = False,
) -> Tensor:
    """IRNet's walk, which boundaries block: y = (x ⊙ (1 - boundary)) · T^steps (equations 8 to 10 of the paper).

    `maps` (C, h, w) or (N, C, h, w); `boundary` (h, w) or (N, h, w) in [0, 1]; the result is like `maps`. For the
    rest see `random_walk`.
    """
    return random_walk(
        maps * (1 - boundary.unsqueeze(-3)),
        path_affinities(boundary, radius),
        radius=radius,
        beta=beta,
        steps=steps,
        restart=restart,
        chebyshev=chebyshev,
    )


@torch.no_grad()
def random_walk(
    maps: Tensor,
    affinities: Tensor,
    *,
    radius: int = 5,
    beta: float,
    steps: int,
    restart: float = 0,
    chebyshev: bool = False,
) -> Tensor:
    """x · T^steps, T = B / colsum(B), B = affinities^beta with 1 on the diagonal: float32 (or float64) like `maps`.

    `maps` (C, h, w) or a batch (N, C, h, w), finite; `affinities` (P, h, w) or (N, P, h, w) in [0, 1], in the order of
    `pair_offsets(radius)`, on the same device. Pairs that reach out of the map are ignored. On the CPU a compiled
    kernel walks one image at a time on one thread and without the interpreter lock: use one image per thread.
    Other devices walk the whole batch at once. Memory grows with (pairs + maps) · pixels.

    `chebyshev` replaces the power by its Chebyshev expansion, cut off where the coefficients left out sum to 1e-7:
    84 steps instead of 256, equal up to about 1e-6 of the largest value. Constants stay exact, other values may leave
    the range of `maps` by that much.

    `restart` is the probability r of going back to the beginning at each step.

    No gradient flows. Raises `WeaksegError` for shapes that do not fit, affinities outside [0, 1], maps that are not
    finite, beta ≤ 0, steps < 0, a restart outside [0, 1], and for one together with `chebyshev`.
    """
    _check(maps, affinities, radius, beta, steps)
    if not 0 <= restart <= 1 or (restart and chebyshev):
        raise WeaksegError(f"The walk's restart is {restart}; expected 0 … 1, and 0 with a Chebyshev expansion.")
    if maps.ndim == 3:
        batch = maps[None], affinities[None]
        return random_walk(*batch, radius=radius, beta=beta, steps=steps, restart=restart, chebyshev=chebyshev)[0]
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if values.numel() == 0 or radius < 2:
        return values.clone()
    grid = _Grid(maps.shape[-2], maps.shape[-1], radius)
    transition = grid.pad(affinities.to(values).pow(beta) * grid.exists(values.device))
    walk = _walk_images if values.device.type == "cpu" else _walk_batch
    power = _chebyshev if chebyshev else partial(_power, restart=restart)
    return grid.crop(walk(grid, values, transition, grid.rate(transition), power, steps))


def _walk_images(grid: _Grid, maps: Tensor, transition: Tensor, rate: Tensor, power: Power, steps: int) -> Tensor:
    """One image after the other, with the compiled step."""
    images = zip(maps, transition, rate, strict=True)
    return torch.stack([power(_compiled_step(grid, t, r), grid.pad(x), steps) for x, t, r in images])


def _walk_batch(grid: _Grid, maps: Tensor, transition: Tensor, rate: Tensor, power: Power, steps: int) -> Tensor:
    """All images and as many maps at once as there should be memory for."""
    step = _window_step(grid, transition, rate)
    together = max(1, MAX_WINDOW_VALUES // (len(maps) * grid.cells * grid.window**2))
    return torch.cat([power(step, grid.pad(x), steps) for x in maps.split(together, dim=1)], dim=1)


def _check(maps: Tensor, affinities: Tensor, radius: int, beta: float, steps: int) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise WeaksegError(f"The walk's beta is {beta}; it has to be positive and finite.")
    if steps < 0:
        raise WeaksegError(f"The walk's number of steps is {steps}; it cannot be negative.")
    expected = (*maps.shape[:-3], len(pair_offsets(radius)), *maps.shape[-2:])
    if maps.ndim not in (3, 4) or tuple(affinities.shape) != expected:
        raise WeaksegError(
            f"Maps {tuple(maps.shape)} and affinities {tuple(affinities.shape)} do not fit: expected (C, h, w) and "
            f"({len(pair_offsets(radius))}, h, w) for radius {radius}, both with or both without a batch in front."
        )
    if not ((affinities >= 0) & (affinities <= 1)).all():
        raise WeaksegError("Affinities outside 0 … 1, or not numbers, make no random walk. Check the network.")
    if not maps.isfinite().all():
        raise WeaksegError("Maps with infinite values, or values that are not numbers, make no random walk.")


@dataclass(frozen=True)
class _Grid:
    """The layout of a walk: each row of the map is followed by zeros, and the whole by a margin on both sides, so that
    in memory a neighbour is at a constant distance, and those outside the map are zeros."""

    height: int
    width: int
    radius: int

    @property
    def reach(self) -> int:
        return self.radius - 1

    @property
    def window(self) -> int:
        return 2 * self.reach + 1

    @property
    def row(self) -> int:
        return self.width + self.reach

    @property
    def cells(self) -> int:
        return self.height * self.row

    @property
    def margin(self) -> int:
        return self.reach * self.row + self.reach

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        return pair_offsets(self.radius)

    @cached_property
    def shifts(self) -> npt.NDArray[np.int64]:
        """How far in memory the second pixel of each pair is from the first."""
        return np.array([dy * self.row + dx for dy, dx in self.offsets])

    def pad(self, maps: Tensor) -> Tensor:
        """(…, h, w) to (…, margin + cells + margin), in new memory."""
        return F.pad(F.pad(maps, (0, self.reach)).flatten(-2), (self.margin, self.margin))

    def crop(self, padded: Tensor) -> Tensor:
        """The reverse of `pad`."""
        rows = padded[..., self.margin : self.margin + self.cells].unflatten(-1, (self.height, self.row))
        return rows[..., : self.width].contiguous()

    def exists(self, device: torch.device) -> Tensor:
        """Whether the second pixel of each pair lies in the map: (P, h, w), bool."""
        dy, dx = torch.tensor(self.offsets, device=device).T[:, :, None, None]
        y, x = torch.arange(self.height, device=device)[:, None] + dy, torch.arange(self.width, device=device) + dx
        return (y < self.height) & (x >= 0) & (x < self.width)

    def both_ways(self, transition: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each pair the weights (…, cells) towards the second pixel, and towards the first."""
        ahead = (transition[..., pair, :] for pair in range(len(self.shifts)))
        return [
            (weights.narrow(-1, self.margin, self.cells), weights.narrow(-1, self.margin - shift, self.cells))
            for weights, shift in zip(ahead, self.shifts.tolist(), strict=True)
        ]

    def rate(self, transition: Tensor) -> Tensor:
        """1 / Σ_i B_ij for all cells (…, cells); the sum is at least 1, which is the pixel itself."""
        total = transition.new_ones(*transition.shape[:-2], self.cells)
        for forwards, backwards in self.both_ways(transition):
            total += forwards
            total += backwards
        return 1 / total


def _compiled_step(grid: _Grid, transition: Tensor, rate: Tensor) -> Step:
    """A step for one image on the CPU: states (C, margin + cells + margin)."""
    arrays = (transition.numpy(), grid.shifts, rate.numpy())
    return lambda values, result: _average(values.numpy(), *arrays, result.numpy())


@compiled(fastmath={"contract"})
def _average(values: Any, transition: Any, shifts: Any, rate: Any, result: Any) -> None:
    """One step of all maps (C, ·), block by block: each weight is read once and used for all maps.

    The slices are what makes the loops over pixels vector instructions: indices into them cannot be negative.
    """
    maps, cells = len(values), len(rate)
    margin = (values.shape[1] - cells) // 2
    flows = np.empty((maps, BLOCK), values.dtype)
    for start in range(0, cells, BLOCK):
        count = min(BLOCK, cells - start)
        first, last = margin + start, margin + start + count
        flows[:] = 0
        for pair in range(len(shifts)):
            shift = shifts[pair]
            forwards, backwards = transition[pair, first:last], transition[pair, first - shift : last - shift]
            for c in range(maps):
                flow, here = flows[c, :count], values[c, first:last]
                ahead, behind = values[c, first + shift : last + shift], values[c, first - shift : last - shift]
                for p in range(count):
                    flow[p] += forwards[p] * (ahead[p] - here[p]) + backwards[p] * (behind[p] - here[p])
        for c in range(maps):
            flow, here, there = flows[c, :count], values[c, first:last], result[c, first:last]
            for p in range(count):
                there[p] = here[p] + rate[start + p] * flow[p]


def _window_step(grid: _Grid, transition: Tensor, rate: Tensor) -> Step:
    """A step for a batch on any device in a handful of operations: states (N, C, margin + cells + margin).

    The neighbours of all pixels are a strided view of the state; weights are 0 where the window has no pair.
    """
    side = grid.window
    weights = transition.new_zeros(len(transition), 1, grid.cells, side, side)
    for (dy, dx), (forwards, backwards) in zip(grid.offsets, grid.both_ways(transition), strict=True):
        weights[:, 0, :, grid.reach + dy, grid.reach + dx] = forwards
        weights[:, 0, :, grid.reach - dy, grid.reach - dx] = backwards

    def step(values: Tensor, result: Tensor) -> None:
        images, maps, length = values.shape
        here = values.narrow(-1, grid.margin, grid.cells)
        windows = values.as_strided((images, maps, grid.cells, side, side), (maps * length, length, 1, grid.row, 1))
        flow = (windows - here[..., None, None]).mul_(weights).sum((-2, -1))
        torch.addcmul(here, flow, rate[:, None], out=result.narrow(-1, grid.margin, grid.cells))

    return step


def _power(step: Step, maps: Tensor, steps: int, restart: float) -> Tensor:
    """x · T^steps, with restart; `maps` is overwritten."""
    current, following = maps, torch.zeros_like(maps)
    begin = maps.clone() if restart else maps
    for _ in range(steps):
        step(current, following)
        if restart:
            following.lerp_(begin, restart)  # a difference, so that constants stay exact here, too
        current, following = following, current
    return current


def _chebyshev(step: Step, maps: Tensor, steps: int) -> Tensor:
    """x + Σ_k c_k (T_k(T) x - x): T is self-adjoint for the weights d = colsum(B), with its spectrum in [-1, 1].

    The coefficients sum to 1, so this equals Σ c_k T_k(T) x; what is cut off is left with x, and constants are exact.
    """
    previous, current, following = maps.clone(), torch.zeros_like(maps), torch.zeros_like(maps)
    result = maps.clone()
    step(previous, current)
    for order, coefficient in enumerate(chebyshev_coefficients(steps)[1:], start=1):
        if order > 1:
            step(current, following)
            torch.sub(2 * following, previous, out=following)
            previous, current, following = current, following, previous
        if coefficient > 0:
            result.add_(current - maps, alpha=coefficient)
    return result


def chebyshev_coefficients(power: int, tail: float = CHEBYSHEV_TAIL) -> list[float]:
    """c_0 … c_K with x^power = Σ c_k T_k(x), up to the first K whose dropped coefficients sum to at most `tail`."""
    # c_k = 2^(1 - n) binomial(n, (n - k) / 2) for k of n's parity, half of it for k = 0, and 0 otherwise.
    exact = [2 * math.comb(power, (power - k) // 2) if (power - k) % 2 == 0 else 0 for k in range(power + 1)]
    exact[0] //= 2
    dropped, degree = 0, power
    while degree > 0 and dropped + exact[degree] <= tail * 2**power:
        dropped += exact[degree]
        degree -= 1
    return [coefficient / 2**power for coefficient in exact[: degree + 1]]
