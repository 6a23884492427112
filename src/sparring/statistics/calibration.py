"""Whether a model's confidence is the share in which it is right."""

import numpy as np

BINS = 15


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (Naeini et al., 2015; Guo et al., 2017, arXiv 1706.04599), in bins of one width.

    confidence: (N,) in [0, 1], the probability of the class that was named.  correct: (N,) bool.
    Returns the mean over the images of |accuracy - mean confidence| of their bin; nan without images.
    """
    if not len(confidence):
        return float("nan")
    place = np.clip(np.ceil(confidence.astype(float) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, correct.astype(float) - confidence, bins)
    return float(np.abs(gap).sum() / len(confidence))
