"""Dense CRF: pulls a coarse labelling to the edges of the image.

P. Krähenbühl, V. Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NeurIPS 2011;
symmetric normalisation: *Parameter Learning and Convergent Inference for Dense Random Fields*, ICML 2013.

    E(x) = Σ_i U_i(x_i) + Σ_{i<j} μ(x_i, x_j) Σ_m k^m(f_i, f_j),    k = exp(-½ |f_i - f_j|²)

`dense_crf` is what the methods use: a Gaussian kernel (position) and a bilateral kernel (position and colour), Potts
compatibility. `DenseCRF` takes any kernels, normalisation and compatibility, and goes step by step.

Labels are rows 0 … L - 1 here; which class a row stands for is the caller's business. Drop absent classes before the
call (never pass a row of zeros). On the CPU functions run compiled and without the interpreter lock
(`lattice_filter.py`), on other devices in torch, many images at once (`densecrf_torch.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID

if TYPE_CHECKING:
    from weakseg.ops.lattice_filter import PottsKernel
    from weakseg.ops.permutohedral import Lattice

FloatArray = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Scale = float | tuple[float, ...]

# Lattices of the Gaussian kernel are kept for images of up to this many pixels, 32 bytes each.
MAX_CACHED_PIXELS = 1 << 19
CACHED_SIZES = 16


def _positive(name: str, scale: Scale) -> None:
    for value in np.atleast_1d(scale):
        if not (math.isfinite(value) and value > 0):
            raise WeaksegError(f"The dense CRF's {name} is {scale}; it has to be positive and finite.")


def _divided(scale: Scale, factor: float) -> Scale:
    return tuple(value / factor for value in scale) if isinstance(scale, tuple) else scale / factor


@dataclass(frozen=True)
class CRFParameters:
    """Two kernels and the number of mean-field iterations.

    `gaussian_sxy` and `bilateral_sxy` are standard deviations in pixels, `bilateral_srgb` in grey levels (0 … 255); a
    pair (x, y) or one number for each colour channel makes them anisotropic. The weights multiply the messages.
    No iterations (0, or fewer) leave the softmax of the negative unary.

    Raises `WeaksegError` for a scale that is not positive and finite, or a weight that is not finite.
    """

    gaussian_sxy: Scale = 3.0
    gaussian_weight: float = 3.0
    bilateral_sxy: Scale = 80.0
    bilateral_srgb: Scale = 13.0
    bilateral_weight: float = 10.0
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            _positive(name, getattr(self, name))
        for name in ("gaussian_weight", "bilateral_weight"):
            if not math.isfinite(getattr(self, name)):
                raise WeaksegError(f"The dense CRF's {name} is {getattr(self, name)}; it has to be a finite number.")

    def scaled(self, factor: float) -> CRFParameters:
        """The parameters for an image reduced by `factor`: positions are divided by it, colours are not."""
        _positive("scale factor", factor)
        return replace(
            self,
            gaussian_sxy=_divided(self.gaussian_sxy, factor),
            bilateral_sxy=_divided(self.bilateral_sxy, factor),
        )


# The papers' settings.
PARAMETERS = {
    "affinitynet": CRFParameters(),
    "affinitynet_walk": CRFParameters(iterations=1),
    "seam": CRFParameters(),
    "seam_retrain": CRFParameters(bilateral_sxy=32.0, iterations=1),
    "irnet": CRFParameters(bilateral_sxy=50.0, bilateral_srgb=5.0),
    "icd": CRFParameters(),
    "deeplab": CRFParameters(1.0, 3.0, 67.0, 3.0, 4.0),
    "spml": CRFParameters(1.0, 3.0, 67.0, 3.0, 4.0),
}


def known_parameters(name: str, *others: str) -> str:
    """Check the name of a set of parameters; raises ValueError with the names there are, and `others`."""
    if name not in PARAMETERS:
        raise ValueError(f"there is no such set of CRF parameters; known: {', '.join([*PARAMETERS, *others])}")
    return name


# Unaries --------------------------------------------------------------------------------------------------------------


def unary_from_probabilities(
    probabilities: npt.NDArray[Any], clip: float | None = 1e-5, scale: float | None = None
) -> FloatArray:
    """U = -ln p, float32, in the shape of `probabilities` (L, …).

    `scale` s in (0, 1] mixes with the uniform distribution first: s p + (1 - s) / L. `clip` bounds p from below, and
    by 1 from above; nothing is renormalised. Without a clip, probability 0 becomes +inf: the label is impossible.

    Raises `WeaksegError` for a scale or clip outside (0, 1], and NaN.
    """
    for name, value in (("scale", scale), ("clip", clip)):
        if value is not None and not 0 < value <= 1:
            raise WeaksegError(f"The unary's {name} is {value}; it has to be above 0 and at most 1.")
    if np.isnan(probabilities).any():
        raise WeaksegError(f"The probabilities hold NaN, first at {_where(np.isnan(probabilities))}.")
    if scale is not None:
        probabilities = scale * probabilities.astype(np.float64) + (1 - scale) / len(probabilities)
    if clip is not None:
        probabilities = probabilities.clip(clip, 1)
    elif (probabilities < 0).any():
        raise WeaksegError(
            f"The probability at {_where(probabilities < 0)} is negative: clip it, or give numbers from 0 to 1."
        )
    with np.errstate(divide="ignore"):
        return np.ascontiguousarray(-np.log(probabilities), np.float32)


def unary_from_labels(labels: npt.NDArray[Any], n: int, certainty: float, zero_unsure: bool = False) -> FloatArray:
    """U (n, …), float32, of hard labels (…): -ln g for the label given, -ln((1 - g) / (n - 1)) for the others.

    Labels are 0 … n - 1; with `zero_unsure` they are 1 … n, and 0 means unsure. Unsure and void pixels (255) are
    uniform: -ln(1 / n). `certainty` is g, in (0, 1).

    Raises `WeaksegError` for other labels, with the position of the first.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise WeaksegError(f"Hard labels have to be whole numbers, not {labels.dtype}.")
    if n < 1:
        raise WeaksegError(f"A unary needs at least one label, not {n}.")
    if not 0 < certainty < 1:
        raise WeaksegError(f"The certainty of hard labels is {certainty}; it has to lie between 0 and 1.")
    rows = labels.astype(np.int64) - (1 if zero_unsure else 0)
    unsure = labels == VOID
    if zero_unsure:
        unsure |= labels == 0
    unknown = ((rows < 0) | (rows >= n)) & ~unsure
    if unknown.any():
        known = f"1 to {n}, 0 (unsure)" if zero_unsure else f"0 to {n - 1}"
        raise WeaksegError(
            f"Label {labels[unknown][0]} at {_where(unknown)} is none of the {n} labels: {known} or {VOID} (void)."
        )
    given, other = -math.log(certainty), -math.log((1 - certainty) / max(n - 1, 1))
    row_numbers = np.arange(n).reshape(-1, *[1] * labels.ndim)
    unary = np.where(row_numbers == rows, np.float32(given), np.float32(other))
    unary[:, unsure] = -math.log(1 / n)
    return unary


def _where(mask: npt.NDArray[np.bool_]) -> str:
    return f"index {tuple(int(index[0]) for index in np.nonzero(mask))}"


# Features: where a pixel is, in standard deviations -------------------------------------------------------------------


def gaussian_features(height: int, width: int, sxy: Scale) -> FloatArray:
    """(x / sx, y / sy) of every pixel in raster order, (N, 2); x first, as the lattice is not isotropic."""
    sx, sy = _per_axis(sxy, 2)
    features = np.empty((2, height, width), np.float32)
    features[0] = np.arange(width, dtype=np.float32) / sx
    features[1] = (np.arange(height, dtype=np.float32) / sy)[:, None]
    return features.reshape(2, -1).T


def bilateral_features(image: Image, sxy: Scale, srgb: Scale) -> FloatArray:
    """(x / sx, y / sy, R / sr, G / sg, B / sb) of every pixel of an image (H, W, K) in raster order, (N, 2 + K)."""
    height, width, channels = image.shape
    features = np.empty((2 + channels, height, width), np.float32)
    features[:2] = gaussian_features(height, width, sxy).T.reshape(2, height, width)
    for channel, scale in enumerate(_per_axis(srgb, channels)):
        features[2 + channel] = (np.arange(256, dtype=np.float32) / scale)[image[..., channel]]
    return features.reshape(2 + channels, -1).T


def grid_features(shape: Sequence[int], scales: Sequence[float]) -> FloatArray:
    """The position in an array of any number of dimensions, first axis first, each divided by its scale: (N, d).

    For an image that is (y, x), in contrast to `gaussian_features`.
    """
    steps = [
        np.arange(size, dtype=np.float32) / scale
        for size, scale in zip(shape, _per_axis(tuple(scales), len(shape)), strict=True)
    ]
    return np.stack(np.meshgrid(*steps, indexing="ij")).reshape(len(steps), -1).T


def _per_axis(scale: Scale, axes: int) -> FloatArray:
    _positive("scale", scale)
    values = np.atleast_1d(np.asarray(scale, np.float32))
    if len(values) not in (1, axes):
        raise WeaksegError(f"The scale {scale} has {len(values)} numbers; {axes} (or one for all) are needed.")
    return np.broadcast_to(values, axes)


# Inference ------------------------------------------------------------------------------------------------------------


@overload
def dense_crf(
    image: Image, unary: npt.NDArray[Any], parameters: CRFParameters | str = ..., device: Any = ...
) -> FloatArray: ...


@overload
def dense_crf(
    image: Image, unary: Sequence[npt.NDArray[Any]], parameters: CRFParameters | str = ..., device: Any = ...
) -> list[FloatArray]: ...


@overload
def dense_crf(
    image: Sequence[Image], unary: Sequence[Any], parameters: CRFParameters | str = ..., device: Any = ...
) -> list[Any]: ...


def dense_crf(
    image: Image | Sequence[Image],
    unary: npt.NDArray[Any] | Sequence[Any],
    parameters: CRFParameters | str = "affinitynet",
    device: Any = "cpu",
) -> FloatArray | list[Any]:
    """The marginals Q (L, H, W), float32, of an image (H, W, K), uint8, with a unary U (L, H, W): -ln p.

    Several unaries of one image, in a list, cost little more than one, and give a list. Labels whose unaries are
    equal everywhere cost as much as one label. +inf in a unary makes a label impossible at a pixel.

    Several images, in a list, each with its unary or its list of unaries, give a list of what each alone would give;
    their sizes and numbers of labels may differ. `device` (of torch, or its name) says where: the CPU takes one image
    per thread, other devices take all images at once, as far as there should be memory for them.

    `parameters` are `CRFParameters` or a name of `PARAMETERS`. Symmetric normalisation, Potts compatibility,
    Q⁰ = softmax(-U), and then in every iteration, for all pixels together: Q ← softmax(-U + Σ_m w_m K_m Q).

    Raises `WeaksegError` for an image or a unary of another type or size, NaN or -inf (with its position), a pixel
    where every label is impossible, an unknown name, and images and unaries that are not of one number.
    """
    parameters = _parameters(parameters)
    if isinstance(image, np.ndarray):
        return _dense_crfs([image], [unary], parameters, device)[0]
    if isinstance(unary, np.ndarray) or len(image) != len(unary):
        raise WeaksegError(f"There are {len(image)} images and {len(unary)} unaries: each image needs its own.")
    return _dense_crfs(image, unary, parameters, device)


def _parameters(parameters: CRFParameters | str) -> CRFParameters:
    if isinstance(parameters, CRFParameters):
        return parameters
    try:
        return PARAMETERS[known_parameters(parameters)]
    except ValueError as error:
        raise WeaksegError(f'CRF parameters "{parameters}": {error}.') from None


def _dense_crfs(images: Sequence[Image], unaries: Sequence[Any], parameters: CRFParameters, device: Any) -> list[Any]:
    problems = []
    for image, unary in zip(images, unaries, strict=True):
        _check_image(image)
        several = [unary] if isinstance(unary, np.ndarray) else unary
        problems.append([Problem.of(_checked_unary(item, image.shape[:2])) for item in several])
    results: list[Any] = []
    for image, unary, rows, found in zip(
        images, unaries, problems, _all_rows(images, problems, parameters, device), strict=True
    ):
        marginals = [
            problem.all_labels(result).reshape(-1, *image.shape[:2])
            for problem, result in zip(rows, found, strict=True)
        ]
        results.append(marginals[0] if isinstance(unary, np.ndarray) else marginals)
    return results


def _all_rows(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: Any
) -> list[list[FloatArray]]:
    """The marginals (R, N) of the problems of each image."""
    if parameters.iterations < 1:
        return [[softmax(-problem.unary) for problem in of_image] for of_image in problems]
    mean_field = _mean_field_on_cpu if str(device).startswith("cpu") else _mean_field_on_device
    # A single row is certain, and needs no lattice.
    filtered = [i for i, of_image in enumerate(problems) if any(len(problem.unary) > 1 for problem in of_image)]
    results = iter(mean_field([images[i] for i in filtered], [problems[i] for i in filtered], parameters, device))
    certain = [[np.ones_like(problem.unary) for problem in of_image] for of_image in problems]
    return [next(results) if i in filtered else rows for i, rows in enumerate(certain)]


def _mean_field_on_cpu(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: Any
) -> list[list[FloatArray]]:
    from weakseg.ops.lattice_filter import mean_field

    def of_image(i: int) -> list[FloatArray]:
        unaries, copies = zip(*((problem.unary, problem.copies) for problem in problems[i]), strict=True)
        return mean_field(unaries, copies, _kernels(images[i], parameters), parameters.iterations)

    if len(images) == 1:
        return [of_image(0)]
    from weakseg.parallel import threaded

    return list(threaded(of_image, range(len(images))))


def _mean_field_on_device(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: Any
) -> list[list[FloatArray]]:
    from weakseg.ops.densecrf_torch import mean_field

    return mean_field(images, problems, parameters, device)


def softmax(scores: npt.NDArray[Any]) -> FloatArray:
    """Softmax over the first axis, float32."""
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


@dataclass(frozen=True)
class Problem:
    """A unary without repetition. Labels with the same unary keep equal marginals, so n of them become one row with
    unary U - ln n whose marginal is the sum of theirs; its message is shared out: 1 / n for each.

    `unary` (R, N); `row` (L,) is the row of each label; `copies` (R,) the number of labels of each row.
    """

    unary: FloatArray
    row: npt.NDArray[np.intp]
    copies: npt.NDArray[np.intp]

    @classmethod
    def of(cls, unary: FloatArray) -> Problem:
        sample = unary[:, :: max(1, unary.shape[1] // 64)]  # most pairs of rows differ in it

        def equal(a: int, b: int) -> bool:
            return np.array_equal(sample[a], sample[b]) and np.array_equal(unary[a], unary[b])

        first: list[int] = []
        row = np.empty(len(unary), np.intp)
        for label in range(len(unary)):
            row[label] = next((r for r, other in enumerate(first) if equal(label, other)), len(first))
            if row[label] == len(first):
                first.append(label)
        copies = np.bincount(row)
        if len(first) < len(unary):
            unary = unary[first] - np.log(copies).astype(np.float32)[:, None]
        return cls(unary, row, copies)

    def all_labels(self, marginals: FloatArray) -> FloatArray:
        """The marginals (L, N) of all labels from those of the rows (R, N)."""
        if len(self.row) == len(self.copies):
            return marginals
        return marginals[self.row] / self.copies[self.row].astype(np.float32)[:, None]


def _kernels(image: Image, parameters: CRFParameters) -> tuple[PottsKernel, PottsKernel]:
    height, width = image.shape[:2]
    gaussian = _cached_gaussian_kernel if height * width <= MAX_CACHED_PIXELS else _gaussian_kernel
    sx, sy = _per_axis(parameters.gaussian_sxy, 2)
    bilateral = _normalised(bilateral_features(image, parameters.bilateral_sxy, parameters.bilateral_srgb))
    return (
        _weighted(gaussian(height, width, (float(sx), float(sy))), parameters.gaussian_weight),
        _weighted(bilateral, parameters.bilateral_weight),
    )


def _gaussian_kernel(height: int, width: int, sxy: tuple[float, float]) -> PottsKernel:
    return _normalised(gaussian_features(height, width, sxy))


_cached_gaussian_kernel = lru_cache(CACHED_SIZES)(_gaussian_kernel)


def _normalised(features: FloatArray) -> PottsKernel:
    """The symmetrically normalised kernel of weight 1."""
    from weakseg.ops.lattice_filter import PottsKernel

    kernel = PairwiseKernel.of(features, 1.0)
    ones = np.ones((1, kernel.lattice.points), np.float32)
    return PottsKernel(kernel.lattice, kernel.scale[0], kernel.lattice.gain, kernel.filter(ones)[0])


def _weighted(kernel: PottsKernel, weight: float) -> PottsKernel:
    return kernel._replace(factor=weight * kernel.factor, total=np.float32(weight) * kernel.total)


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.dtype != np.uint8:
        raise WeaksegError(
            f"The dense CRF needs an image of 8-bit numbers (height, width, channels), "
            f"not {image.dtype} {image.shape}: give the picture as it was decoded, not normalised."
        )
    if image.size == 0:
        raise WeaksegError(f"The image is empty: {image.shape}.")


def _checked_unary(unary: npt.NDArray[Any], size: tuple[int, ...]) -> FloatArray:
    """The unary as (L, N) float32."""
    if unary.ndim != 3 or unary.shape[1:] != size or len(unary) == 0:
        raise WeaksegError(
            f"The unary has shape {unary.shape}; for this image (labels, {size[0]}, {size[1]}) is needed."
        )
    unary = np.ascontiguousarray(unary, np.float32)
    if not unary.min() > -np.inf:
        wrong = ~(unary > -np.inf)
        raise WeaksegError(f"The unary is {unary[wrong][0]} at (label, y, x) = {_where(wrong)}: numbers are needed.")
    if unary.max() == np.inf and np.isinf(unary).all(axis=0).any():
        raise WeaksegError(
            f"Every label is impossible (+inf) at (y, x) = {_where(np.isinf(unary).all(axis=0))} of the unary."
        )
    return unary.reshape(len(unary), -1)


# Any kernels, step by step --------------------------------------------------------------------------------------------

Normalisation = Literal["none", "before", "after", "symmetric"]


@dataclass(frozen=True)
class PairwiseKernel:
    """K and the compatibility of its messages.

    With n = F(1): "symmetric" K v = ν∘F(ν∘v), ν = n^-½; "after" ν∘F(v), ν = 1 / n; "before" F(ν∘v); "none" F(v).
    `compatibility` is a number w (Potts: equal labels gain w), or costs: of each label for itself, (L,), or of each
    pair, (L, L), which is symmetrised. Potts w is the vector -w, or the matrix -w · I.
    """

    lattice: Lattice
    compatibility: float | npt.NDArray[Any]
    normalisation: Normalisation = "symmetric"

    @classmethod
    def of(
        cls,
        features: npt.NDArray[Any],
        compatibility: float | npt.NDArray[Any],
        normalisation: Normalisation = "symmetric",
    ) -> PairwiseKernel:
        """The kernel of features (N, d) in standard deviations."""
        from weakseg.ops.permutohedral import Lattice

        if normalisation not in get_args(Normalisation):
            raise WeaksegError(f'Unknown normalisation "{normalisation}": {", ".join(get_args(Normalisation))}.')
        return cls(Lattice.of(features), compatibility, normalisation)

    @cached_property
    def scale(self) -> FloatArray:
        """ν (1, N)."""
        from weakseg.ops.lattice_filter import gaussian_filter

        mass = gaussian_filter(self.lattice, np.ones((1, self.lattice.points), np.float32)).astype(np.float64) + 1e-20
        return (1 / (np.sqrt(mass) if self.normalisation == "symmetric" else mass)).astype(np.float32)

    def filter(self, values: FloatArray) -> FloatArray:
        """K v of values (C, N)."""
        from weakseg.ops.lattice_filter import gaussian_filter

        if self.normalisation in ("symmetric", "before"):
            values = self.scale * values
        result = gaussian_filter(self.lattice, values)
        return self.scale * result if self.normalisation in ("symmetric", "after") else result

    def cost(self, marginals: FloatArray) -> FloatArray:
        """What the messages of `marginals` (L, N) cost each label at each pixel."""
        messages = self.filter(marginals)
        costs, labels = np.asarray(self.compatibility, np.float32), len(marginals)
        if costs.shape not in ((), (labels,), (labels, labels)):
            raise WeaksegError(f"The compatibility of {labels} labels cannot have the shape {costs.shape}.")
        if costs.ndim == 0:
            return -costs * messages
        if costs.ndim == 1:
            return costs[:, None] * messages
        return np.asarray((costs + costs.T) / 2 @ messages, np.float32)


@dataclass(frozen=True)
class DenseCRF:
    """Mean field for a unary (L, N) and any kernels, one step at a time. Slower than `dense_crf`."""

    unary: FloatArray
    kernels: Sequence[PairwiseKernel]

    def start(self) -> FloatArray:
        """Q⁰ = softmax(-U)."""
        return softmax(-self.unary)

    def step(self, marginals: FloatArray) -> FloatArray:
        """One mean-field update of all pixels."""
        costs = self.unary
        for kernel in self.kernels:
            costs = costs + kernel.cost(marginals)
        return softmax(-costs)

    def inference(self, iterations: int) -> FloatArray:
        """The marginals (L, N) after a number of updates."""
        marginals = self.start()
        for _ in range(iterations):
            marginals = self.step(marginals)
        return marginals

    def divergence(self, marginals: FloatArray) -> float:
        """KL(Q ‖ P) up to a constant, with the pixels' messages to themselves and both directions of every pair:
        Σ Q ln Q + Σ U Q + Σ_m Σ Q C(K_m Q)."""
        possible = marginals > 0
        q = marginals[possible].astype(np.float64)
        pairwise = sum(float((marginals * kernel.cost(marginals)).sum(dtype=np.float64)) for kernel in self.kernels)
        return float((q * np.log(np.maximum(q, 1e-20))).sum() + (q * self.unary[possible]).sum() + pairwise)
