"""The colours of maps against matplotlib's, and what they leave of a picture."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from rclip_metric.images.heat import COLOURS, colours, overlay

pytestmark = pytest.mark.filterwarnings("error")


def test_the_colours_are_those_of_inferno():
    inferno = matplotlib.colormaps["inferno"]
    exact = [round(255 * channel) for step in range(9) for channel in inferno(step / 8)[:3]]
    assert [*bytes.fromhex("".join(colour[1:] for colour in COLOURS))] == exact
    values = np.linspace(0, 1, 256)
    between = colours(values).astype(int) - np.round(255 * inferno(values)[:, :3])
    assert np.abs(between).max() <= 17  # by straight lines between nine colours


def test_more_is_brighter():
    # CIE lightness, by the formula of sRGB: equal steps of value are nearly equal steps of it.
    linear = np.where((c := colours(np.linspace(0, 1, 65)) / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722] + 1e-6) - 16
    steps = np.diff(lightness[4:])  # not the blackest ones
    assert (steps > 0).all() and steps.max() < 2 * steps.mean()


def test_a_map_is_stretched_over_the_picture():
    picture = Image.fromarray(np.full((40, 80, 3), 128, np.uint8))
    laid = overlay(picture, np.array([[0.0, 0.0], [0.0, 3.0]], dtype=np.float16), 3.0)
    pixels = np.asarray(laid).sum(2)
    assert laid.size == (80, 40) and laid.mode == "RGB"
    assert pixels[-1, -1] == pixels.max() > 2 * pixels[0, 0]
    assert np.unravel_index(pixels.argmin(), pixels.shape) == (0, 0)


def test_where_nothing_differs_the_picture_is_gray():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    pixels = np.asarray(overlay(picture, np.zeros((3, 3)), 0.0)).astype(int)
    assert np.ptp(pixels, 2).max() <= 2  # the map's darkest colour is nearly black
