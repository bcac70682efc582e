"""Pictures of every kind become the RGB that a viewer shows; everything else a clear ImageError."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from PIL import Image

from pyfastv import ImageError, OptionError, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def two_pixels(mode: str = "RGB", left: Any = RED, right: Any = BLUE) -> Image.Image:
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after its header, of any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT"


def pixels(array: np.ndarray) -> list[list[tuple[int, ...]]]:
    return [[tuple(int(v) for v in pixel) for pixel in row] for row in array]


# sources


def test_path_bytes_pillow_and_data_uris_give_the_same(tmp_path: Path) -> None:
    image = two_pixels()
    data = encoded(image)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    base = base64.b64encode(data).decode()
    sources: list[Any] = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        image,
        Image.open(io.BytesIO(data)),
        np.asarray(image),
        f"data:image/png;base64,{base}",
        f"DATA:image/png;name=x;BASE64,{base.rstrip('=')}",
        f"data:;base64,{base[:20]}\n{base[20:]}",
        f"data:image/png;base64,{base.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png,{quote_from_bytes(data)}",
    ]
    for source in sources:
        loaded = load_image(source)
        assert pixels(loaded) == [[RED, BLUE]]
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert loaded.flags.owndata


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(encoded(two_pixels()),))
    writer.start()
    assert pixels(load_image(pipe)) == [[RED, BLUE]]
    writer.join()


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "PPM", "ICO", "WEBP", "JPEG2000"])
def test_raster_formats(form: str) -> None:
    image = Image.new("RGB", (16, 16), RED)
    options = {"lossless": True} if form == "WEBP" else {}
    assert pixels(load_image(encoded(image, form, **options))) == [[RED] * 16] * 16


def test_jpeg_is_close() -> None:
    loaded = load_image(encoded(Image.new("RGB", (32, 16), (200, 40, 90)), "JPEG"))
    assert loaded.shape == (16, 32, 3)
    assert np.abs(loaded.astype(int) - (200, 40, 90)).max() <= 3


# orientation, transparency, modes


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, [[RED, BLUE]]),
        (2, [[BLUE, RED]]),
        (3, [[BLUE, RED]]),
        (4, [[RED, BLUE]]),
        (5, [[RED], [BLUE]]),
        (6, [[RED], [BLUE]]),
        (7, [[BLUE], [RED]]),
        (8, [[BLUE], [RED]]),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, shown: Any, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    assert pixels(load_image(encoded(two_pixels(), form, exif=exif, **options))) == shown


def test_exif_orientation_of_a_pillow_image_is_applied_to_a_copy() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(two_pixels(), "PNG", exif=exif)))
    assert load_image(image).shape == (2, 1, 3)
    assert image.size == (2, 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(data).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [
        ("RGBA", (255, 0, 0, 255), (9, 9, 9, 0)),
        ("LA", (0, 255), (9, 0)),
    ],
)
def test_alpha_is_laid_on_white(mode: str, left: Any, right: Any) -> None:
    shown = [[RED if mode == "RGBA" else (0, 0, 0), WHITE]]
    image = two_pixels(mode, left, right)
    assert pixels(load_image(image)) == shown
    assert pixels(load_image(encoded(image))) == shown


def test_half_transparent_is_half_white() -> None:
    value = load_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))[0, 0]
    assert np.abs(value.astype(int) - 127).max() <= 1


def test_transparent_colour_of_a_palette_picture_is_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(image, "PNG", transparency=1))) == [[RED, WHITE]]
    assert pixels(load_image(encoded(image, "GIF", transparency=0))) == [[WHITE, BLUE]]
    assert pixels(load_image(encoded(image, "PNG", transparency=b"\x00\xff"))) == [[WHITE, BLUE]]


def test_transparent_colour_of_a_grey_and_an_rgb_picture_is_white() -> None:
    assert pixels(load_image(encoded(two_pixels("L", 0, 9), transparency=9))) == [[(0, 0, 0), WHITE]]
    assert pixels(load_image(encoded(two_pixels(), transparency=BLUE))) == [[RED, WHITE]]


@pytest.mark.parametrize(
    ("mode", "left", "right", "shown"),
    [
        ("1", 0, 1, [(0, 0, 0), WHITE]),
        ("L", 7, 200, [(7, 7, 7), (200, 200, 200)]),
        ("CMYK", (0, 255, 255, 0), (255, 255, 0, 0), [RED, BLUE]),
        ("HSV", (0, 255, 255), (0, 0, 255), [RED, WHITE]),
        ("YCbCr", (255, 128, 128), (0, 128, 128), [WHITE, (0, 0, 0)]),
        ("RGBX", (255, 0, 0, 7), (0, 0, 255, 0), [RED, BLUE]),
        ("RGBa", (0, 0, 0, 255), (0, 0, 0, 0), [(0, 0, 0), WHITE]),
        ("PA", (0, 255), (0, 0), [(0, 0, 0), WHITE]),
        ("I", 0, 65535, [(0, 0, 0), WHITE]),
        ("F", 0.0, 1.0, [(0, 0, 0), WHITE]),
        ("F", 51.0, 255.0, [(51, 51, 51), WHITE]),
    ],
)
def test_modes(mode: str, left: Any, right: Any, shown: Any) -> None:
    image = two_pixels(mode, left, right)
    if mode == "PA":
        image.putpalette([0, 0, 0])
    assert pixels(load_image(image)) == [shown]


def test_cmyk_jpeg() -> None:
    loaded = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(loaded.astype(int) - RED).max() <= 3


def test_values_beyond_the_range_widen_it() -> None:
    assert pixels(load_image(two_pixels("I", 0, 200_000))) == [[(0, 0, 0), WHITE]]
    assert pixels(load_image(two_pixels("F", -100.0, 300.0))) == [[(0, 0, 0), WHITE]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    shown = [[(0, 0, 0), (1, 1, 1), (128, 128, 128), WHITE]]
    assert pixels(load_image(encoded(Image.fromarray(values), form))) == shown
    assert pixels(load_image(Image.fromarray(values))) == shown


def test_16_bit_grey_pgm() -> None:
    data = b"P5 3 1 65535\n" + struct.pack(">HHH", 0, 32896, 65535)
    assert pixels(load_image(data)) == [[(0, 0, 0), (128, 128, 128), WHITE]]


def test_not_finite_float_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="not finite"):
        load_image(two_pixels("F", 0.0, float("nan")))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(load_image(data))[0][0] == RED


# arrays


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (np.array([[0, 200]], np.uint8), [(0, 0, 0), (200, 200, 200)]),
        (np.array([[[0], [200]]], np.uint8), [(0, 0, 0), (200, 200, 200)]),
        (np.array([[RED, BLUE]], np.uint8), [RED, BLUE]),
        (np.array([[(*RED, 255), (*BLUE, 0)]], np.uint8), [RED, WHITE]),
        (np.array([[0, 32896, 65535]], np.uint16), [(0, 0, 0), (128, 128, 128), WHITE]),
        (np.array([[0, 65535]], ">u2"), [(0, 0, 0), WHITE]),
        (np.array([[(0.0, 0.5, 1.0)]], np.float32), [(0, 128, 255)]),
        (np.array([[0.0, 1.0]], np.float64), [(0, 0, 0), WHITE]),
        (np.array([[0.0, 1.0]], np.float16), [(0, 0, 0), WHITE]),
        (np.array([[(0.0, 0.0, 0.0, 0.0)]], np.float32), [WHITE]),
    ],
)
def test_arrays(array: Any, shown: Any) -> None:
    before = array.copy()
    array.flags.writeable = False
    assert pixels(load_image(array)) == [shown]
    assert (array == before).all()


def test_the_result_is_not_a_view_of_the_callers_array() -> None:
    array = np.zeros((2, 2, 3), np.uint8)
    load_image(array)[:] = 9
    assert not array.any()


def test_strided_arrays() -> None:
    array = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    for view in (array[:, ::2], array[::-1], array.transpose(1, 0, 2), array[:, :, ::-1]):
        assert (load_image(view) == view).all()
        assert load_image(view).flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\).*channels last"),
        (np.zeros((8, 8, 2), np.uint8), "channels last"),
        (np.zeros((8, 8, 5), np.uint8), "channels last"),
        (np.zeros(8, np.uint8), "channels last"),
        (np.zeros((1, 8, 8, 3), np.uint8), "channels last"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros((8, 0), np.float32), "no pixels"),
        (np.zeros((8, 8), np.int32), "int32.*uint8, uint16"),
        (np.zeros((8, 8), bool), "bool.*uint8, uint16"),
        (np.zeros((8, 8), np.complex64), "complex64"),
        (np.zeros((8, 8), object), "object"),
        (np.full((8, 8), 255.0), r"\[0, 1\].*255"),
        (np.full((8, 8), -0.01), r"\[0, 1\]"),
        (np.full((8, 8), np.nan), r"\[0, 1\].*nan"),
        (np.full((8, 8), np.inf, np.float32), r"\[0, 1\].*inf"),
    ],
)
def test_arrays_that_are_no_picture(array: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(array)


# what is refused


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (b"\x00" * 1000, "not a picture"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xef\xbb\xbf\n<SVG></SVG>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(data)
    path = tmp_path / "thing.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"thing\.png.*{words}"):
        load_image(path)


@pytest.mark.parametrize("form", ["EPS", "PDF", "TGA", "PCX", "SGI"])
def test_formats_off_the_list_are_refused(form: str) -> None:
    with pytest.raises(ImageError, match="not a picture"):
        load_image(encoded(Image.new("RGB", (8, 8), RED), form))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for length in (len(data) // 2, 30, 12):
        with pytest.raises(ImageError):
            load_image(data[:length])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000"])
def test_damaged_files_raise_nothing_but_image_errors(form: str) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)), form)
    random = np.random.default_rng(2)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 400), 6):
            damaged[at] = random.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert load_image(damaged, max_pixels=1_000_000).ndim == 3


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:image/png;base64", "no data"),
        ("data:image/png;base64,@@@@", "base64"),
        ("data:image/png;base64,A", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:,", "empty"),
        ("data:text/plain,hello", "text/plain.*not a picture"),
    ],
)
def test_bad_data_uris(uri: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(uri)


def test_a_message_never_repeats_the_data_of_a_uri() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("url", ["http://example.org/a.png", "HTTPS://example.org/a.png"])
def test_web_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(ImageError, match="not fetched"):
        load_image(url)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.png", tmp_path, "a\0b", "x" * 10_000, ""):
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert len(str(caught.value)) < 600
    with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
        load_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("source", [None, 5, 1.5, object(), [1, 2], {"url": "x"}])
def test_other_types_are_refused_by_name(source: Any) -> None:
    with pytest.raises(ImageError, match=type(source).__name__):
        load_image(source)


# the pixel cap


@pytest.mark.parametrize("size", [(8001, 8000), (12000, 8000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_with_too_many_pixels_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        load_image(png_header(*size))


def test_the_cap_tells_size_limit_and_way_out() -> None:
    data = encoded(Image.new("RGB", (30, 20)))
    with pytest.raises(ImageError, match=r"30 x 20 is 600 pixels, the limit is 599.*raise max_pixels"):
        load_image(data, max_pixels=599)
    assert load_image(data, max_pixels=600).shape == (20, 30, 3)


def test_the_cap_holds_for_images_and_arrays() -> None:
    for source in (Image.new("RGB", (30, 20)), np.zeros((20, 30, 3), np.uint8)):
        with pytest.raises(ImageError, match="the limit is 599"):
            load_image(source, max_pixels=599)


@pytest.mark.parametrize("limit", [0, -1, 1.5, None])
def test_the_cap_itself_is_checked(limit: Any) -> None:
    with pytest.raises(OptionError, match="max_pixels"):
        load_image(np.zeros((2, 2), np.uint8), max_pixels=limit)


def test_a_pillow_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


# threads


def test_many_threads_at_once() -> None:
    sources = [encoded(Image.new("RGB", (64, 64), (i, 0, 0)), "PNG" if i % 2 else "WEBP") for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(load_image, sources))
    assert all(abs(int(array[0, 0, 0]) - i) <= 8 for i, array in enumerate(loaded))


def test_pillows_settings_are_left_alone() -> None:
    before = Image.MAX_IMAGE_PIXELS
    load_image(np.zeros((2, 2), np.uint8), max_pixels=10)
    assert before == Image.MAX_IMAGE_PIXELS
