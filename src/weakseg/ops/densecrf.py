"""Dense CRF: pulls a coarse labelling to the edges of the image.

P. Krähenbühl, V. Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, NeurIPS 2011;
symmetric normalisation: *Parameter Learning and Convergent Inference for Dense Random Fields*, ICML 2013.

    E(x) = Σ_i U_i(x_i) + Σ_{i<j} [x_i ≠ x_j] Σ_m w_m k_m(f_i, f_j),    k = exp(-½ |f_i - f_j|²)

There are two kernels, a Gaussian one (position) and a bilateral one (position and colour), see `crf_features.py`.

Labels are rows 0 … L - 1 here; which class a row stands for is the caller's business. Drop absent classes before the
call (never pass a row of zeros). On the CPU functions run compiled and without the interpreter lock
(`densecrf_compiled.py`), on other devices in torch, many images at once (`densecrf_torch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.ops.crf_features import Image
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters, known_parameters
from weakseg.ops.crf_problem import Problem
from weakseg.ops.crf_unary import FloatArray, first_index
from weakseg.ops.crf_unary import unary_from_probabilities as unary_from_probabilities  # callers look for it here
from weakseg.threads import threaded


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
        return [[_softmax(-problem.unary) for problem in of_image] for of_image in problems]
    mean_field = _mean_field_on_cpu if str(device).startswith("cpu") else _mean_field_on_device
    # A single row is certain, and needs no lattice.
    filtered = [i for i, of_image in enumerate(problems) if any(len(problem.unary) > 1 for problem in of_image)]
    results = iter(mean_field([images[i] for i in filtered], [problems[i] for i in filtered], parameters, device))
    certain = [[np.ones_like(problem.unary) for problem in of_image] for of_image in problems]
    return [next(results) if i in filtered else rows for i, rows in enumerate(certain)]


def _mean_field_on_cpu(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: Any
) -> list[list[FloatArray]]:
    from weakseg.ops.densecrf_compiled import mean_field

    def of_image(i: int) -> list[FloatArray]:
        return mean_field(images[i], problems[i], parameters)

    if len(images) == 1:
        return [of_image(0)]
    return list(threaded(of_image, range(len(images))))


def _mean_field_on_device(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: Any
) -> list[list[FloatArray]]:
    from weakseg.ops.densecrf_torch import mean_field

    return mean_field(images, problems, parameters, device)


def _softmax(scores: npt.NDArray[Any]) -> FloatArray:
    """Softmax over the first axis, float32."""
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


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
        raise WeaksegError(
            f"The unary is {unary[wrong][0]} at (label, y, x) = {first_index(wrong)}: numbers are needed."
        )
    if unary.max() == np.inf and np.isinf(unary).all(axis=0).any():
        raise WeaksegError(
            f"Every label is impossible (+inf) at (y, x) = {first_index(np.isinf(unary).all(axis=0))} of the unary."
        )
    return unary.reshape(len(unary), -1)
