"""Where a histogram falls into two parts of the most information.

J. N. Kapur, P. K. Sahoo, A. K. C. Wong, *A new method for gray-level picture thresholding using the entropy of the
histogram*, Computer Vision, Graphics, and Image Processing 29 (1985): the threshold k with the largest sum of the
entropies of both parts, H(k) = ln P_k + H_k / P_k + ln (1 - P_k) + (H_n - H_k) / (1 - P_k), where P_k is the share of
the values up to k and H_k = - Σ_{i ≤ k} p_i ln p_i. Where a histogram falls off slowly, it lies higher than Otsu's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def entropy_threshold(counts: npt.NDArray[np.int64]) -> float | None:
    """The threshold in (0, 1) of a histogram of equal bins, such as `ops.otsu.histogram`; None where all values lie in
    one bin. Of equally good thresholds, the middle one is taken."""
    share = counts / max(int(counts.sum()), 1)
    terms = -share * np.log(np.where(share > 0, share, 1))
    below, entropy = share.cumsum()[:-1], terms.cumsum()[:-1]
    both = np.flatnonzero((below > 0) & (below < 1 - 1e-12))
    if not len(both):
        return None
    below, entropy, above = below[both], entropy[both], 1 - below[both]
    total = np.log(below) + entropy / below + np.log(above) + (terms.sum() - entropy) / above
    best = both[total >= total.max() - 1e-9]
    return (int(best[0]) + int(best[-1]) + 2) / 2 / len(counts)
