"""Measures whether a model's confidence equals its accuracy."""

import numpy as np

BINS = 15


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error (Naeini et al., 2015; Guo et al., 2017, arXiv 1706.04599), in equal bins.

    confidence: (N,) in [0, 1], the probability of the predicted class.  correct: (N,) bool.
    Returns the mean over the images of |accuracy - mean confidence| of their bin; nan without images.
    """
    if not len(confidence):
        return float("nan")
    place = np.clip(np.ceil(confidence.astype(float) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, correct.astype(float) - confidence, bins)
    return float(np.abs(gap).sum() / len(confidence))
