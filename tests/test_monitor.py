"""Monitors: what they write, when, and tiles of images."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import distnn as nn
from distnn.errors import ShapeError
from distnn.monitor import (
    Monitor,
    MonitorImage,
    MonitorImageTile,
    MonitorSeries,
    MonitorTimeElapsed,
    plot_series,
    plot_time_elapsed,
    tile_images,
)


def test_a_series_writes_means_over_its_interval(tmp_path, caplog):
    series = MonitorSeries("training loss", Monitor(tmp_path / "new"), interval=3)
    with caplog.at_level(logging.INFO, "distnn"):
        for i in range(7):
            series.add(i, float(i * i))
    series.close()
    text = (tmp_path / "new" / "training-loss.series.txt").read_text()
    assert text == f"2 {5 / 3:g}\n5 {50 / 3:g}\n"
    assert "iter=5 {training loss}=16.66" in caplog.text


def test_a_timer_writes_seconds_and_iterations(tmp_path):
    timer = MonitorTimeElapsed("time", Monitor(tmp_path), interval=2, verbose=False)
    for i in range(5):
        timer.add(i)
    timer.close()
    lines = np.loadtxt(tmp_path / "time.timer.txt")
    assert lines[:, 0].tolist() == [1, 3]
    assert lines[:, 2].tolist() == [2, 2]
    assert 0 < lines[0, 1] <= lines[0, 3] < lines[1, 3]


def test_tiles_are_rows_and_columns_of_images():
    images = np.arange(1, 6)[:, None, None, None] * np.ones((5, 1, 2, 3))
    tile = tile_images(images, padsize=1, padval=9)
    assert tile.shape == (9, 12)
    assert tile[0::3, 0::4].tolist() == [[1, 2, 3], [4, 5, 9], [9, 9, 9]]
    assert np.all(tile[2::3] == 9)
    with pytest.raises(ShapeError, match=r"pass \(B, C, H, W\)"):
        tile_images(images[0])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [MonitorImage, MonitorImageTile])
def test_images_become_png_files(tmp_path, kind, channels):
    image = pytest.importorskip("matplotlib.image", reason="pictures need distnn[examples]")
    monitor = kind("pictures", Monitor(tmp_path), interval=2, verbose=False, num_images=2)
    batch = np.linspace(-3, 5, 3 * channels * 16).reshape(3, channels, 4, 4)
    for i in range(4):
        monitor.add(i, nn.Variable.from_numpy_array(batch) if i else batch)
    files = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    if kind is MonitorImageTile:
        assert files == ["000000.png", "000001.png", "000003.png"]
    else:
        assert files == [f"00000{i}-00{k}.png" for i in (0, 1, 3) for k in (0, 1)]
        shown = batch[:2]
        expected = (shown - shown.min()) / (shown.max() - shown.min())
        found = image.imread(tmp_path / "pictures" / files[1])[..., 0]
        np.testing.assert_allclose(found, expected[1, 0], atol=2 / 255)


def test_curves_can_be_plotted(tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="plots need distnn[examples]")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series = MonitorSeries("s", Monitor(tmp_path), verbose=False)
    timer = MonitorTimeElapsed("t", Monitor(tmp_path), interval=1, verbose=False)
    for i in range(3):
        series.add(i, i * 2)
        timer.add(i)
    series.close()
    timer.close()
    plt.figure()
    plot_series(str(tmp_path / "s.series.txt"))
    assert plt.gca().lines[0].get_ydata().tolist() == [0, 2, 4]
    plot_time_elapsed(str(tmp_path / "t.timer.txt"), elapsed=True, unit="m")
    plt.close("all")
