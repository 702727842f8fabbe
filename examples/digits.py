"""Real handwritten digits (scikit-learn's, 1,797 images of 8x8 pixels) as a data iterator."""

from __future__ import annotations

import numpy as np

from distnn.utils.data_iterator import DataIterator, data_iterator_simple

HELD_OUT = 297  # the last images are for testing, where an example tests


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 1, 8, 8) float32 with values 0 to 16, and labels (1797, 1) int32."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    return images, digits.target[:, None].astype(np.int32)


def data_iterator(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int = 313, shuffle: bool = True
) -> DataIterator:
    """Batches of (image, label)."""
    return data_iterator_simple(
        lambda i: (images[i], labels[i]),
        len(images),
        batch_size,
        shuffle=shuffle,
        rng=np.random.RandomState(seed),
    )
