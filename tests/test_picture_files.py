"""Picture files as they are found: what browsers show is read, and what is no picture is called what it is."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import pyfastv
from pyfastv import ImageError, Runner, load_image
from pyfastv.inputs.images import picture_size
from pyfastv.models import bundled_examples

CLOCK = bundled_examples()[0].picture
RED = (255, 0, 0)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def slope(width: int = 96, height: int = 128) -> Image.Image:
    """Smooth, with no two rows alike."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 2, y * 1.5, (x + y) % 256], -1).astype(np.uint8))


def text_chunk(body: bytes, kind: bytes = b"tEXt", checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """Behind the header."""
    return png[:33] + chunk + png[33:]


def png_of(colors: np.ndarray) -> bytes:
    """Of 16 bits a color, which Pillow does not write."""
    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [text_chunk(header, b"IHDR"), text_chunk(zlib.compress(rows), b"IDAT"), text_chunk(b"", b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of(colors: np.ndarray, order: str) -> bytes:
    """The same, with one strip, not compressed."""
    height, width, _ = colors.shape
    pixels = colors.astype(f"{order}u2").tobytes()
    bits_at = 8 + len(pixels)
    short, long = 3, 4
    entries = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, 3, bits_at),
        (259, short, 1, 1),
        (262, short, 1, 2),
        (273, long, 1, 8),
        (277, short, 1, 3),
        (278, short, 1, height),
        (279, long, 1, len(pixels)),
    ]
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        one_short = kind == short and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if one_short else struct.pack(f"{order}I", value)
        table += struct.pack(f"{order}HHI", tag, kind, count) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, bits_at + 6)
    return head + pixels + struct.pack(f"{order}HHH", 16, 16, 16) + table + struct.pack(f"{order}I", 0)


# metadata


def heavy(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "compressed text":
        info.add_text("workflow", json.dumps(list(range(200_000))), zip=True)
    elif kind == "international text":
        info.add_itxt("XML:com.adobe.xmp", "x" * 1_200_000, zip=True)
    elif kind == "profile":
        return encoded(slope(), icc_profile=os.urandom(1_200_000))
    elif kind == "behind the pixels":
        text = text_chunk(b"k\0\0" + zlib.compress(b"y" * 1_200_000), b"zTXt")
        whole = encoded(slope())
        return whole[:-12] + text + whole[-12:]
    return encoded(slope(), pnginfo=info)


@pytest.mark.parametrize("kind", ["compressed text", "international text", "profile", "behind the pixels"])
def test_a_png_with_much_metadata_is_read(kind: str) -> None:
    np.testing.assert_array_equal(load_image(heavy(kind)), np.asarray(slope()))


def test_a_png_with_many_texts_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1000)
    info = PngImagePlugin.PngInfo()
    for number in range(20):
        info.add_text(f"k{number}", "y" * 100)
    np.testing.assert_array_equal(load_image(encoded(slope(), pnginfo=info)), np.asarray(slope()))


@pytest.mark.parametrize(
    "chunk",
    [
        text_chunk(b"k\0text", checksum=1),
        text_chunk(b"k\0\7text", b"zTXt"),  # of an unknown compression
        text_chunk(b"gA", b"gAMA"),
        text_chunk(b"profile\0\7x", b"iCCP"),
    ],
    ids=["checksum", "compression", "length", "profile"],
)
def test_broken_metadata_does_not_make_a_png_unreadable(chunk: bytes) -> None:
    np.testing.assert_array_equal(load_image(with_chunk(encoded(slope()), chunk)), np.asarray(slope()))


def test_orientation_is_applied_beside_metadata_that_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = text_chunk(b"k\0\0" + zlib.compress(b"y" * 1_200_000), b"zTXt")
    png = with_chunk(encoded(slope(), exif=exif), text)
    np.testing.assert_array_equal(load_image(png), np.rot90(np.asarray(slope()), -1))
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>', zip=True)
    png = with_chunk(encoded(slope(), pnginfo=xmp), text)
    np.testing.assert_array_equal(load_image(png), np.rot90(np.asarray(slope()), 2))


def test_a_png_whose_pixels_are_broken_stays_refused() -> None:
    png = encoded(slope())
    for broken in (png[: len(png) // 2], png.replace(b"IDAT", b"XDAT")):
        with pytest.raises(ImageError, match="damaged"):
            load_image(broken)


def test_the_size_is_told_by_the_header_whatever_stands_behind_it() -> None:
    assert picture_size(heavy("profile")) == (96, 128)
    assert picture_size(encoded(slope(), "JPEG")) == (96, 128)
    assert picture_size(b"hello") is None


# files that end early


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("lost", [2, 40])
def test_a_jpeg_without_its_last_bytes_is_shown_as_in_browsers(lost: int, subsampling: int) -> None:
    data = encoded(slope(), "JPEG", quality=95, subsampling=subsampling)
    whole, shown = (load_image(part).astype(int) for part in (data, data[:-lost]))
    assert shown.shape == whole.shape
    assert np.abs(shown[:96] - whole[:96]).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_half_a_jpeg_is_refused(mode: str) -> None:
    data = encoded(slope().convert(mode), "JPEG", quality=95)
    assert load_image(data[:-2]).shape == (128, 96, 3)
    for share in (0.5, 0.7):
        with pytest.raises(ImageError, match="truncated"):
            load_image(data[: int(len(data) * share)])


def test_a_progressive_jpeg_may_lack_the_last_refinement_only() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    data = encoded(noise, "JPEG", progressive=True, quality=90)
    assert load_image(data[:-30]).shape == (96, 96, 3)
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: len(data) // 4])


# numbers of small ranges


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (np.uint16(16), "PNG"),  # 12 bits in 16
        (np.uint16(4), "TIFF"),  # 10 bits in 16
        (np.uint16(64), "PNG"),  # 14 bits in 16
        (np.uint16(1), "PNG"),  # bytes in 16
        (np.int32(1), "TIFF"),  # bytes in 32
    ],
)
def test_integers_of_a_small_range_are_scaled_by_it(values: Any, form: str) -> None:
    grey = np.array([[0, 85, 170, 255]], np.uint8)
    data = encoded(Image.fromarray(grey.astype(values.dtype) * values), form)
    made = load_image(data)[0, :, 0].astype(int)
    assert np.abs(made - grey[0]).max() <= 1


def test_a_pillow_image_and_an_array_of_a_small_range_are_scaled_by_it() -> None:
    grey = Image.fromarray(np.array([[0, 85, 170, 255]], np.uint8))
    assert load_image(grey.convert("I"))[0, :, 0].tolist() == [0, 85, 170, 255]
    colors = np.array([[(0, 2048, 4095)]], np.uint16)
    assert load_image(colors)[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "TIFF of Motorola"])
def test_colors_of_a_small_range_are_scaled_by_it(form: str, bits: int) -> None:
    colors = np.array([[(0, 85, 170), (255, 1, 128)]], np.uint32) * (2**bits - 1) // 255
    order = ">" if "Motorola" in form else "<"
    made = load_image(png_of(colors) if form == "PNG" else tiff_of(colors, order))
    assert np.abs(made.astype(int) - [[(0, 85, 170), (255, 1, 128)]]).max() <= 1


# Pillow images


def test_a_closed_pillow_image_is_called_closed() -> None:
    with Image.open(CLOCK) as left:
        pass
    closed = Image.open(CLOCK)
    closed.close()
    with open(CLOCK, "rb") as file:
        of_a_closed_file = Image.open(file)
    for image in (left, closed, of_a_closed_file):
        with pytest.raises(ImageError, match="closed before its pixels were read") as caught:
            load_image(image)
        assert "damaged" not in str(caught.value)
    with Image.open(CLOCK) as read:
        read.load()
    assert load_image(read).shape == (336, 336, 3)


# URIs


def test_data_uris_are_read_as_browsers_do() -> None:
    data = encoded(Image.new("RGB", (2, 1), RED))
    base = base64.b64encode(data).decode()
    for uri in (
        f"data:image/png; base64,{base}",
        f"data:image/png;  base64 ,{base}",
        f" \n\tdata:image/png;base64,{base}\n",
        f"data:image/png;\nbase64,{base}",
        f"data:image/png;base64,{base[:10]} {base[10:]}",
        f"data:image/png;base64,{base}#top",
        f"data:image/png;charset=utf-8;base64,{base}",
    ):
        assert load_image(uri).tolist() == [[list(RED)] * 2]
    for uri in ("data:image/png;base64;x,AAAA", f"data:image/png;base6 4,{base}"):
        with pytest.raises(ImageError):
            load_image(uri)


def test_file_uris_are_paths(tmp_path: Path) -> None:
    path = tmp_path / "a picture, 100 % ü.png"
    path.write_bytes(CLOCK.read_bytes())
    uri = path.as_uri()
    assert "%20" in uri
    for source in (uri, uri.replace("file://", "FILE://localhost"), uri.replace("file://", "file:")):
        assert load_image(source).shape == (336, 336, 3)
    with pytest.raises(ImageError, match=r"missing one\.png: no such file"):
        load_image((tmp_path / "missing one.png").as_uri())
    with pytest.raises(ImageError, match="another machine"):
        load_image("file://elsewhere/a.png")


def test_a_file_uri_in_messages_is_a_picture(fake_runner: Runner) -> None:
    content = [{"type": "image_url", "image_url": {"url": CLOCK.as_uri()}}, {"type": "text", "text": "Q?"}]
    fake_runner.create_chat_completion([{"role": "user", "content": content}])
    assert len(dict(fake_runner._engine.calls)["prefill"]["images"]) == 1  # type: ignore[attr-defined]


def test_base64_without_a_header_is_not_called_a_missing_file() -> None:
    with pytest.raises(ImageError, match="data URI") as caught:
        load_image(base64.b64encode(CLOCK.read_bytes()).decode())
    assert len(str(caught.value)) < 300


# what is no picture


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC .*pyfastv.heif.*JPEG or PNG"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isommp41", "video .MP4 or QuickTime"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video .QuickTime"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx ", "CR3.*convert"),
        (b"RIFF\0\0\0\0AVI LIST", "video .AVI"),
        (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
        (b"G" + b"\0" * 187 + b"G" + b"\0" * 187 + b"G" + b"\0" * 9, "video .MPEG transport"),
        (b"8BPS\0\1", "Photoshop.*convert it to PNG or JPEG"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"PK\x03\x04word/", "ZIP.*docx"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\xff\xd8\xff\xe0\0", "damaged or truncated JPEG"),
        (b"\x89PNG\r\n\x1a\n\0\0", "damaged or truncated PNG"),
        (b"iVBORw0KGgo=", "base64.*data URI"),
        (b"\n%PDF-1.7\n", "PDF"),
    ],
)
def test_what_a_file_is_and_the_way_out_are_told(
    data: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match=words):
        load_image(data)


def test_a_targa_is_known_by_its_name_or_its_end(tmp_path: Path) -> None:
    data = encoded(slope(), "TGA")
    (tmp_path / "old.tga").write_bytes(data[:-26])
    for source in (data, tmp_path / "old.tga"):
        with pytest.raises(ImageError, match=r"TGA \(Targa\): convert it to PNG or JPEG"):
            load_image(source)


def test_a_heic_photo_is_read_where_pillow_heif_is() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heif")
    made = heif.from_pillow(slope())
    buffer = io.BytesIO()
    made.save(buffer, quality=-1)
    Image.OPEN.pop("HEIF", None)  # as in a process that has not read one yet
    shown = load_image(buffer.getvalue()).astype(int)
    assert np.abs(shown - np.asarray(slope(), int)).mean() < 3
    with pytest.raises(ImageError, match=r"damaged"):
        load_image(buffer.getvalue()[:200])


# which of several


def test_a_broken_picture_is_named_by_its_place(fake_runner: Runner) -> None:
    with pytest.raises(ImageError, match=r"^picture 2 of 3: the picture of 5 bytes: is not a picture"):
        fake_runner.ask([CLOCK, b"hello", CLOCK], "Q?")
    with pytest.raises(ImageError, match=r"^the picture of 5 bytes"):
        fake_runner.ask(b"hello", "Q?")
    with fake_runner.session() as chat, pytest.raises(ImageError, match=r"^picture 1 of 2"):
        chat.ask("Q?", [b"hello", CLOCK])
    with pytest.raises(ImageError, match=r"^picture 2 of 2"):
        pyfastv.load_frames([CLOCK, b"hello"])
