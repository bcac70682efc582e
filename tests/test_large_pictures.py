"""Pictures above a limit on pixels that are scaled down to it, as the server does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyfastv import ImageError, load_image
from pyfastv.engine.job_pool import JobPool
from pyfastv.engine.sampling import Sampling
from pyfastv.inputs.chat import user_message
from pyfastv.inputs.images import Limits, load_within
from pyfastv.serve.settings import Settings

from serving import Server, data_uri, question


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(mode: str = "RGB") -> Image.Image:
    """400 x 200, dark on the left, bright on the right."""
    rows = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8), (200, 400))
    return Image.fromarray(np.ascontiguousarray(rows)).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_a_picture_of_every_mode_is_scaled_to_the_limit(mode: str) -> None:
    image = gradient()
    made = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    limits = Limits(100_000, 20_000)
    small = load_within(encoded(made, kind), limits)
    assert limits.size == (400, 200)
    assert small.shape == (100, 200, 3)
    whole = load_image(encoded(made, kind))
    expected = np.asarray(Image.fromarray(whole).resize((200, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(small.astype(int) - expected).mean() < 6


def test_one_within_the_limit_is_as_it_is() -> None:
    limits = Limits(100_000, 80_000)
    np.testing.assert_array_equal(load_within(encoded(gradient()), limits), np.asarray(gradient()))
    assert limits.size == (400, 200)


def test_above_the_hard_limit_nothing_is_read() -> None:
    with pytest.raises(ImageError, match="400 x 200 is 80,000 pixels, the limit is 79,999"):
        load_within(encoded(gradient()), Limits(79_999, 100))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_a_turned_picture_is_upright_and_so_is_its_size(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    limits = Limits(100_000, 20_000)
    small = load_within(encoded(gradient(), kind, exif=exif), limits)
    assert limits.size == (200, 400)
    assert small.shape == (200, 100, 3)
    assert small[0].mean() < small[-1].mean()


def test_a_picture_of_sixteen_bits_keeps_its_brightness() -> None:
    rows = np.broadcast_to(np.linspace(0, 1023, 400).astype(np.uint16), (200, 400))
    limits = Limits(100_000, 20_000)
    small = load_within(np.ascontiguousarray(rows), limits)
    assert small.shape == (100, 200, 3)
    assert small[:, -1].mean() > 250


def test_a_pool_tells_the_size_that_was_given_and_the_size_that_was_seen() -> None:
    with JobPool(slots=1, n_ctx=1024, n_threads=1, max_pixels=100_000, shrink_pixels=20_000) as pool:
        job = pool.submit([user_message("What?", [encoded(gradient())])], Sampling(max_tokens=1))
        assert job.wait(60)
    assert job.report is not None
    (seen,) = job.report.pictures
    assert (seen.size, seen.scaled) == ((400, 200), (200, 100))
    assert "400 x 200, scaled to 200 x 100" in str(job.report)


@pytest.mark.parametrize(("limit", "hard"), [(1000, 4000), (32_000_000, 89_000_000), (10**9, 10**9)])
def test_the_hard_limit_follows_the_limit(limit: int, hard: int) -> None:
    assert Settings(max_pixels=limit).hard_pixels == hard


def test_a_scanned_page_is_answered_and_its_size_told(server: Server) -> None:
    """An A4 page at 600 dpi in black and white: 34.8 million pixels."""
    page = encoded(Image.new("1", (4960, 7016), 1), optimize=True)
    usage = server.chat([question("What is it?", data_uri(page))], max_tokens=1)["usage"]
    (seen,) = usage["visual_pictures"]
    assert seen["size"] == [4960, 7016]
    width, height = seen["scaled"]
    assert width * height <= 32_000_000
    assert abs(width * 7016 / 4960 - height) <= 2
