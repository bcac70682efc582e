"""What a file is, by its first bytes: so that what is no picture is called what it is, with the way out."""

from __future__ import annotations

__all__ = ["HEAD", "TAIL", "describe", "is_heif", "video_format"]

HEAD = 1024
"""First bytes that are looked at."""
TAIL = 18
"""Last bytes that are looked at."""

# Where, what, and what begins so. Containers that may hold moving pictures.
_VIDEOS = (
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (8, b"AVI ", "AVI"),
    (0, b"FLV\x01", "Flash"),
    (0, b"\x00\x00\x01\xba", "MPEG"),
    (0, b"\x00\x00\x01\xb3", "MPEG"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "Windows Media"),
    (0, b"OggS", "Ogg"),
    (0, b"YUV4MPEG2 ", "YUV4MPEG2"),
    (0, b"DKIF", "IVF"),
    (0, b"\x00\x00\x00\x01\x67", "H.264"),
    (0, b"\x00\x00\x00\x01\x40", "H.265"),
    *((4, box, "QuickTime") for box in (b"moov", b"mdat", b"wide", b"free", b"skip")),
)

# Pictures that Pillow knows: one that it does not take is damaged.
_PICTURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"qoif", "QOI"),
)

# Pictures that are not read here.
_OTHER_PICTURES = (
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"gimp xcf", "GIMP (XCF)"),
    (0, b"icns", "Apple icons (ICNS)"),
    (0, b"DDS ", "DirectDraw (DDS)"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (0, b"\x01\xda", "SGI"),
    (0, b"\x0a\x05\x01", "PCX"),
)

# What else people hand over by mistake.
_OTHERS = (
    (0, b"%!PS", "PostScript: render it to PNG first"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS): render it to PNG first"),
    (0, b"GGUF", "a GGUF model file"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself first (git lfs pull)"),
    (0, b"PK\x03\x04", "a ZIP archive, or a document in one (docx, pptx, epub): take the picture out first"),
    (0, b"\x1f\x8b", "compressed by gzip: unpack it first (an .svgz is an SVG drawing: render it to PNG)"),
    (0, b"\x93NUMPY", "a NumPy array: pass it as an array, or save it as PNG"),
    (8, b"WAVE", "sound"),
    (0, b"fLaC", "sound"),
    (0, b"ID3", "sound"),
)

_HEIF_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"heif", b"mif1", b"mif2", b"msf1", b"avif", b"avis"),
}
_ENDING_OF_TGA = b"TRUEVISION-XFILE.\x00"


def is_heif(head: bytes) -> bool:
    """HEIC, HEIF or AVIF: pictures in the container of MP4."""
    return bool(_brands(head) & _HEIF_BRANDS)


def video_format(head: bytes) -> str | None:
    """The container whose signature this is, if it is one that may hold moving pictures."""
    if brands := _brands(head):
        return None if brands & _HEIF_BRANDS or b"crx " in brands else "MP4 or QuickTime"
    if any(head[at : at + 377 : 188] == b"GGG" for at in (0, 4)):
        return "MPEG transport stream"
    return _found(head, _VIDEOS)


def describe(head: bytes, tail: bytes, name: str, reads_heif: bool) -> str:
    """What follows ``name`` in the message about a file that is no picture which can be read, and what to do.

    ``tail``: its last bytes, or none. ``reads_heif``: this Pillow reads HEIC."""
    if is_heif(head):
        if b"avif" in _brands(head):
            return (
                "is an AVIF picture that this Pillow cannot read: convert it to PNG or JPEG, or update Pillow"
            )
        if reads_heif:
            return "is a damaged HEIC (HEIF) picture: copy or download it again"
        return "is a HEIC (HEIF) picture, as phones make them: pip install 'pyfastv[heif]', or convert it to JPEG or PNG"
    if video := video_format(head):
        return f"is not a picture but a video ({video}): ask about it as a video (in Python with video=)"
    if known := _found(head, _PICTURES):
        return f"is a damaged or truncated {known} picture: copy or download it again"
    if b"%PDF-" in head or head.startswith(b"%PDF"):
        return "is not a picture but a PDF document: render a page to PNG first (pdftoppm -png -r 150)"
    if other := _found(head, _OTHERS):
        return f"is not a picture but {other}"
    kind = _found(head, _OTHER_PICTURES)
    if kind is None and (tail.endswith(_ENDING_OF_TGA) or name.lower().endswith((".tga", ".targa"))):
        kind = "TGA (Targa)"
    if kind is None and b"crx " in _brands(head):
        kind = "a camera's raw file (CR3)"
    if kind is not None:
        return f"is not a picture in a format that can be read but {kind}: convert it to PNG or JPEG first"
    return _describe_text(head.lstrip(b"\xef\xbb\xbf \t\r\n").lower(), name)


def _describe_text(head: bytes, name: str) -> str:
    if head.startswith((b"<!doctype html", b"<html")):
        return "is not a picture but a web page: download the picture that it shows"
    if b"<svg" in head or (head.startswith(b"<?xml") and name.lower().endswith(".svg")):
        return "is not a raster picture but an SVG drawing: render it to PNG first (rsvg-convert, inkscape)"
    if head.startswith((b"data:", b"ivborw0k", b"/9j/")):
        return "is not a picture but the text of one in base64: pass that as a data URI, or decode it first"
    return "is not a picture in a format that can be read (PNG, JPEG, WebP, GIF, TIFF, BMP, ...): convert it to PNG"


def _found(head: bytes, signatures: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next((what for at, start, what in signatures if head.startswith(start, at)), None)


def _brands(head: bytes) -> set[bytes]:
    """Of a file in the container of MP4: what it may be read as."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
