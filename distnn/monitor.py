"""Monitors: series of values, elapsed time and images, logged and written to files as NNabla does.

On several ranks let one of them have monitors, or give each a folder of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .errors import MissingExtraError, ShapeError
from .logger import logger
from .ndarray import NdArray
from .variable import Variable


class Monitor:
    """The folder that monitors write to; it is made if it does not exist.

    Args:
        save_path: of the folder.
    """

    def __init__(self, save_path: str | os.PathLike[str]) -> None:
        self.save_path = os.fspath(save_path)
        os.makedirs(self.save_path, exist_ok=True)


class _Interval:
    """Says at which indices a monitor reports: the first, and then every `interval`."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.reported_at = -1

    def due(self, index: int) -> bool:
        return index - self.reported_at >= self.interval


def _open(monitor: Monitor | None, name: str, ending: str) -> TextIO | None:
    """A line-buffered file, so that it can be read while training runs."""
    if monitor is None:
        return None
    path = Path(monitor.save_path, name.replace(" ", "-") + ending)
    return path.open("w", buffering=1)


class MonitorSeries:
    """The mean of the values that were added since the last report.

    Args:
        name: of the series.
        monitor: folder of the file `<name>.series.txt`, lines of index and value; None writes none.
        interval: indices between reports.
        verbose: log each report.

    >>> series = MonitorSeries("loss", interval=2, verbose=False)
    >>> for i in range(4):
    ...     series.add(i, 0.1 * i)
    """

    def __init__(
        self, name: str, monitor: Monitor | None = None, interval: int = 1, verbose: bool = True
    ) -> None:
        self.name = name
        self.verbose = verbose
        self._interval = _Interval(interval)
        self._values: list[float] = []
        self._file = _open(monitor, name, ".series.txt")

    def add(self, index: int, value: Any) -> None:
        """Add a value; `index` is the number of the iteration."""
        self._values.append(float(np.mean(value)))
        if not self._interval.due(index):
            return
        mean = float(np.mean(self._values))
        if self.verbose:
            logger.info("iter=%d {%s}=%s", index, self.name, mean)
        if self._file is not None:
            print(f"{index} {mean:g}", file=self._file)
        self._interval.reported_at = index
        self._values.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class MonitorTimeElapsed:
    """The time since the last report, and since the monitor was made, in seconds.

    Args:
        name: of the timer.
        monitor: folder of the file `<name>.timer.txt`, lines of index, seconds, iterations and
            seconds in all; None writes none.
        interval: indices between reports.
        verbose: log each report.
    """

    def __init__(
        self, name: str, monitor: Monitor | None = None, interval: int = 100, verbose: bool = True
    ) -> None:
        self.name = name
        self.verbose = verbose
        self._interval = _Interval(interval)
        self._file = _open(monitor, name, ".timer.txt")
        self._begin = self._lap = time.perf_counter()

    def add(self, index: int) -> None:
        """An iteration is over; `index` is its number."""
        if not self._interval.due(index):
            return
        now = time.perf_counter()
        lap, total = now - self._lap, now - self._begin
        iterations = index - self._interval.reported_at
        self._lap = now
        if self.verbose:
            logger.info(
                "iter=%d {%s}=%f[sec/%diter] %f[sec]", index, self.name, lap, iterations, total
            )
        if self._file is not None:
            print(f"{index} {lap} {iterations} {total}", file=self._file)
        self._interval.reported_at = index

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


Images = Variable | NdArray | np.ndarray


class MonitorImage:
    """Images as PNG files, `<name>/<index>-<number>.png`.

    Args:
        name: of the folder below the monitor's.
        monitor: folder.
        interval: every `interval`-th index is written, and the first.
        verbose: log what is written.
        num_images: at most so many of a batch.
        normalize_method: maps a batch (N, C, H, W) to values of 0 to 1; default by its minimum and
            maximum.
    """

    def __init__(
        self,
        name: str,
        monitor: Monitor,
        interval: int = 1000,
        verbose: bool = True,
        num_images: int = 16,
        normalize_method: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.name = name
        self.interval = interval
        self.verbose = verbose
        self.num_images = num_images
        self.normalize_method = normalize_method or _by_extremes
        self.save_dir = Path(monitor.save_path, name.replace(" ", "-"))
        self.save_dir.mkdir(parents=True, exist_ok=True)

    def add(self, index: int, var: Images) -> None:
        """A batch of images (N, ..., C, H, W); of more than 3 channels the first 3 are shown."""
        if index != 0 and (index + 1) % self.interval != 0:
            return
        for path, image in self._pictures(index, self._prepared(var)):
            _write_png(path, image)
        if self.verbose:
            logger.info("iter=%d {%s} written to %s", index, self.name, self.save_dir)

    def _pictures(self, index: int, images: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        return [
            (self.save_dir / f"{index:06d}-{i:03d}.png", tile_images(image[None], padsize=0))
            for i, image in enumerate(images)
        ]

    def _prepared(self, var: Images) -> np.ndarray:
        if isinstance(var, Variable):
            var = var.data
        values = np.array(var.get_data("r") if isinstance(var, NdArray) else var)
        if values.ndim < 3:
            raise ShapeError(f"[MonitorImage.add] var has shape {values.shape}; pass (N, C, H, W)")
        values = values.reshape(-1, *values.shape[-3:])[: self.num_images]
        images = np.clip(self.normalize_method(values), 0, 1)
        if images.shape[1] == 2:
            return np.concatenate((images, np.ones_like(images[:, :1])), axis=1)
        return images[:, :3]


class MonitorImageTile(MonitorImage):
    """Images of a batch side by side in one PNG file, `<name>/<index>.png`."""

    def _pictures(self, index: int, images: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        return [(self.save_dir / f"{index:06d}.png", tile_images(images))]


def _by_extremes(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def _write_png(path: Path, image: np.ndarray) -> None:
    try:
        from matplotlib.image import imsave
    except ImportError:
        raise MissingExtraError(
            "[MonitorImage.add] writing PNG files needs matplotlib: pip install distnn[examples]"
        ) from None
    imsave(path, image, cmap="gray", vmin=0, vmax=1)


def tile_images(data: np.ndarray, padsize: int = 1, padval: float = 0) -> np.ndarray:
    """A batch of images as one, in a square of rows and columns.

    Args:
        data: (B, C, H, W).
        padsize: pixels between images.
        padval: their value.
    Returns: (n (H + padsize), n (W + padsize), C) with n = ceil(sqrt(B)), without the last axis if
        C is 1.

    >>> tile_images(np.zeros((5, 3, 8, 8))).shape
    (27, 27, 3)
    """
    if data.ndim != 4:
        raise ShapeError(f"[tile_images] data has shape {data.shape}; pass (B, C, H, W)")
    images, channels, height, width = data.shape
    side = int(np.ceil(np.sqrt(images)))
    tile = np.full((side, height + padsize, side, width + padsize, channels), padval, data.dtype)
    for i, image in enumerate(data):
        tile[i // side, :height, i % side, :width] = image.transpose(1, 2, 0)
    tile = tile.reshape(side * (height + padsize), side * (width + padsize), channels)
    return tile[:, :, 0] if channels == 1 else tile


def plot_series(filename: str, plot_kwargs: Mapping[str, Any] | None = None) -> None:
    """Add the curve of a `.series.txt` file to the present matplotlib figure."""
    import matplotlib.pyplot as plt

    index, values = np.loadtxt(filename, ndmin=2).T
    plt.plot(index, values, **(plot_kwargs or {}))


def plot_time_elapsed(
    filename: str,
    elapsed: bool = False,
    unit: str = "s",
    plot_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Add the curve of a `.timer.txt` file to the present matplotlib figure.

    Args:
        elapsed: the time in all; False is that of one iteration.
        unit: "s", "m", "h" or "d".
    """
    import matplotlib.pyplot as plt

    index, lap, iterations, total = np.loadtxt(filename, ndmin=2).T
    seconds = total if elapsed else lap / iterations
    plt.plot(index, seconds / {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit], **(plot_kwargs or {}))
