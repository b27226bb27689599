"""Recognition of file types by the first bytes, regardless of the name."""

import codecs
import re
from typing import NamedTuple

JSON_TEXT = "a JSON text"
HEAD = 512  # number of bytes that suffice


class Kind(NamedTuple):
    """A file type: its name with an article, the modalities that are read from it, and whether it is a text."""

    name: str
    modalities: tuple[str, ...] = ()
    is_text: bool = False


_IMAGE, _AUDIO, _VIDEO = ("image",), ("audio",), ("audio", "video")
_HEIC, _AVIF = Kind("a HEIC photo", _IMAGE), Kind("an AVIF image", _IMAGE)
# Brands of the container that MP4 videos, M4A audio and phones' HEIC images share.
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_RIFF = {
    b"WEBP": Kind("a WebP image", _IMAGE),
    b"WAVE": Kind("a WAV audio file", _AUDIO),
    b"AVI ": Kind("an AVI video", _VIDEO),
}
_MAGIC = (
    (0, b"\xff\xd8\xff", Kind("a JPEG image", _IMAGE)),
    (0, b"\x89PNG\r\n\x1a\n", Kind("a PNG image", _IMAGE)),
    (0, b"GIF8", Kind("a GIF image", ("image", "video"))),
    (0, b"BM", Kind("a BMP image", _IMAGE)),
    *((0, magic, Kind("a TIFF image", _IMAGE)) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 image")),
    (0, b"\0\0\0\x0cJXL ", Kind("a JPEG XL image")),
    (0, b"\xff\x0a", Kind("a JPEG XL image")),
    (0, b"8BPS", Kind("a Photoshop file")),
    (0, b"\0\0\1\0", Kind("an icon")),
    (128, b"DICM", Kind("a DICOM file")),
    (0, b"%PDF", Kind("a PDF file")),
    (0, b"PK\3\4", Kind("a zip file")),
    (0, b"\x1f\x8b", Kind("a gzip file")),
    (0, b"7z\xbc\xaf", Kind("a 7z file")),
    (0, b"Rar!", Kind("a RAR file")),
    (257, b"ustar", Kind("a tar file")),
    (0, b"PAR1", Kind("a parquet file")),
    (0, b"\x89HDF", Kind("an HDF5 file")),
    (0, b"\x93NUMPY", Kind("a NumPy array")),
    (0, b"\0\5\x16\7", Kind("macOS's notes on another file (its name begins with `._`)")),
    (0, b"ID3", Kind("an MP3 audio file", _AUDIO)),
    (0, b"fLaC", Kind("a FLAC audio file", _AUDIO)),
    (0, b"FORM", Kind("an AIFF audio file", _AUDIO)),
    (0, b"#!AMR", Kind("an AMR audio file", _AUDIO)),
    (0, b"OggS", Kind("an Ogg file", _VIDEO)),
    (4, b"ftyp", Kind("an MP4 file", _VIDEO)),
    (4, b"moov", Kind("a QuickTime video", _VIDEO)),
    (0, b"\x1aE\xdf\xa3", Kind("a WebM or Matroska file", _VIDEO)),
    (0, b"0&\xb2u\x8ef\xcf\x11", Kind("a WMA or WMV file", _VIDEO)),
    (0, b"\0\0\1\xba", Kind("an MPEG video", _VIDEO)),
    (0, b"FLV", Kind("an FLV video", _VIDEO)),
)
_PATH = re.compile(r"[^<>{}\n]*[^<>{}\n/. ]\.[a-z0-9]{2,5}")
_TEXT = (
    ("<!doctype html", "a web page (HTML)"),
    ("<html", "a web page (HTML)"),
    ("<svg", "an SVG drawing"),
    ("<?xml", "an XML text"),
    ("version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches the file)"),
    ("{", JSON_TEXT),
    ("[", JSON_TEXT),
)


def kind_of(head: bytes) -> Kind | None:
    """Return the type of a file that begins with these bytes; None if it is unknown."""
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp" and (brands := _brands(head)) & (_HEIC_BRANDS | _AVIF_BRANDS):
        return _AVIF if brands & _AVIF_BRANDS else _HEIC
    if head and not head.strip(b"\0"):
        return Kind("nothing but zero bytes")
    return next((kind for place, magic, kind in _MAGIC if head.startswith(magic, place)), None) or _text(head)


def is_heic(head: bytes) -> bool:
    """Return whether this is a HEIC image, as phones take."""
    return kind_of(head) == _HEIC


def is_image(head: bytes) -> bool:
    """Return whether this can only be an image; a GIF file may be a video."""
    kind = kind_of(head)
    return kind is not None and kind.modalities == _IMAGE


def refusal(head: bytes, modality: str, what: str, known: str) -> str:
    """Return why a file that begins with these bytes is not `what`, such as `image`; `known` are supported formats."""
    kind = kind_of(head)
    if kind is not None and modality in kind.modalities:
        return f"damaged {what} (it begins as {kind.name})"
    but = f"but {kind.name}; formats that are read:" if kind else "in one of the formats"
    return f"not {'an' if what[0] in 'aeiou' else 'a'} {what} {but} {known}"


def _brands(head: bytes) -> set[bytes]:
    length = min(int.from_bytes(head[:4], "big"), HEAD)
    found = {head[at : at + 4] for at in (8, *range(16, length, 4))}
    # Videos with a cover image have the brands of images, too.
    return found if head[8:12] in _HEIC_BRANDS | _AVIF_BRANDS else set()


def _text(head: bytes) -> Kind | None:
    try:
        # The last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).lstrip().lower()
    except UnicodeDecodeError:
        return None
    if not text or any(ord(character) < 32 and character not in "\t\r\n\f" for character in text):
        return None
    if "<svg" in text:  # often after an XML declaration
        return Kind("an SVG drawing", is_text=True)
    if len(head) < HEAD and _PATH.fullmatch(text.strip()):
        return Kind("a text with the name of another file (a link that was copied as text)", is_text=True)
    return Kind(next((name for start, name in _TEXT if text.startswith(start)), "a text"), is_text=True)
