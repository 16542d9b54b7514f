"""What a file is: whether its name is an image's, and what its first bytes say that it is instead.

How an image is decoded is in decode.py.
"""

import re
from functools import cache
from pathlib import PurePosixPath

from PIL import Image

# Pillow knows these names, but opens no picture of theirs by itself: stubs, videos, and what needs another program.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
HEIC_EXTENSIONS = (".heic", ".heif", ".hif")
FIRST_BYTES = 512  # what `describe_content` looks at
LAYOUTS = "Give a folder with a subfolder of images per class, or Parquet files."
CONTENTS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"version https://git-lfs", "a pointer of Git LFS: git lfs pull fetches the file"),
        (rb"(\.\./)*\.git/annex/|/annex/objects/", "a pointer of git-annex: git annex get fetches the file"),
        (rb"outs:\s*\n\s*-", "a pointer of DVC: dvc pull fetches the file"),
        (rb"(\xef\xbb\xbf)?\s*(?i:<!doctype html|<html)", "an HTML page, as of a failed download"),
        (rb"(\xef\xbb\xbf)?\s*(<\?xml.*)?<svg", "an SVG drawing"),
        (rb"(\xef\xbb\xbf)?\s*<(\?xml|Error)", "an XML document, as of a failed download"),
        (rb"\s*[{\[]\s*[\"{\[]", "JSON"),
        (rb"PK\x03\x04", "a ZIP archive: extract it"),
        (rb"\x1f\x8b", "a gzip archive: extract it"),
        (rb".{257}ustar", "a tar archive: extract it"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "an archive: extract it"),
        (rb"%PDF", "a PDF document"),
        (rb"PAR1", "a Parquet file"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb".{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "HEIC: pip install 'resnet-ops[heic]' reads it"),
        (rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "a video"),
        (rb"\x00+$", "empty: all of its bytes are zero"),
        (rb"[\t\n\r\x20-\x7e]+$", "text"),
    )
)

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
except ImportError:  # the extra is not installed
    pass


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions, in lower case, of the images that Pillow decodes here."""
    known = Image.registered_extensions()  # imports all of Pillow's formats
    return frozenset(extension for extension, kind in known.items() if kind in Image.OPEN and kind not in NOT_DECODED)


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's does."""
    return not name.endswith("/") and PurePosixPath(name).suffix.lower() in image_extensions()


def describe_content(content: bytes) -> str | None:
    """Return what a file that is no image is instead, by its first bytes; None where that is not known."""
    start = content[:FIRST_BYTES]
    return next((name for pattern, name in CONTENTS if pattern.match(start)), None)


def describe_extension(name: str) -> str:
    """Return the kind of a file that is not read, as its name ends."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in HEIC_EXTENSIONS:
        return f"{suffix} (pip install 'resnet-ops[heic]' reads them)"
    return suffix or "without an extension"
