"""The numbers of a dense CRF, and the sets of them that the papers use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from weakseg.errors import WeaksegError

Scale = float | tuple[float, ...]
"""A standard deviation, or one for each axis."""


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
            scale = getattr(self, name)
            if not all(math.isfinite(value) and value > 0 for value in np.atleast_1d(scale)):
                raise WeaksegError(f"The dense CRF's {name} is {scale}; it has to be positive and finite.")
        for name in ("gaussian_weight", "bilateral_weight"):
            if not math.isfinite(getattr(self, name)):
                raise WeaksegError(f"The dense CRF's {name} is {getattr(self, name)}; it has to be a finite number.")

    def within(self, reach: float) -> CRFParameters:
        """The same with a bilateral kernel whose standard deviation of positions is `reach` pixels at most."""
        sxy = tuple(min(value, reach) for value in np.atleast_1d(self.bilateral_sxy).tolist())
        return replace(self, bilateral_sxy=sxy if len(sxy) > 1 else sxy[0])


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


def known_or_none(name: str | None) -> str | None:
    """Check the name of a set of parameters, or None for no CRF."""
    return None if name is None else known_parameters(name, "null")
