"""Numbers and names as text, the same on the terminal, in pages, in charts and in the docs."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice

# Of terminals and of the direction of writing, but for tabs and line breaks.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LINE_END = re.compile(r"\r\n|\r|\n")
SEPARATORS = frozenset("\t\n\u2028\u2029")  # beside those of CONTROLS
MAX_NAMED = 10  # of many names in a message


def first_names(names: Iterable[str], most: int = MAX_NAMED) -> str:
    """Return the first of some names, as a list in a sentence: cat, dog, ..."""
    first = list(islice(names, most + 1))
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "")


def percent(share: float, digits: int | None = 2) -> str:
    """Return a share from 0 to 1 as a percentage, 98.61%; without `digits`, with only those needed, as on ticks."""
    return f"{100 * share:.3g}%" if digits is None else f"{100 * share:.{digits}f}%"


def printable(text: str) -> str:
    r"""Return a text of unknown origin with what commands a terminal written out: `\x1b[2J`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible(text: str) -> str:
    r"""Return lines of a text of unknown origin with what commands a terminal, or reverses its text, written out."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def readable(name: str) -> str:
    r"""Return the name of a file as text, with the bytes of it that are not UTF-8 written out: `caf\xe9`."""
    try:
        content = name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # of no file: halves of characters of UTF-16
        content = name.encode(errors="surrogatepass")
    return content.decode(errors="backslashreplace")


def decode_text(content: bytes) -> str:
    """Return the text of a file that an editor has written: UTF-8, or UTF-16 with the mark that it begins with.

    Raises:
        UnicodeDecodeError: It is of another encoding, or no text.
    """
    return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def text_lines(text: str) -> list[str]:
    """Return the lines of a text, without the last one if it is empty: unlike `str.splitlines`, of newlines alone.

    That also separates at form feeds, at what separates records, and at the line and paragraph separators of Unicode.
    """
    lines = LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def is_one_line(text: str) -> bool:
    """Return whether a text has nothing that separates lines anywhere, commands a terminal, or turns its direction."""
    return CONTROLS.search(text) is None and not SEPARATORS & set(text)


def class_name(text: str) -> str:
    """Return the name of a class as it is compared: accents composed (NFC), however stored, and no blanks around it."""
    name = unicodedata.normalize("NFC", readable(text))
    return name.strip() or name


def size(count: float) -> str:
    """Return a number of bytes in binary units, as CUDA, Ray and Kubernetes count memory: 9.5 MiB, 80 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.{0 if unit == 'B' or count >= 10 else 1}f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def image_size(height: int, width: int) -> str:
    """Return the size of images as `--image-size` takes it, height first, and say so where that matters."""
    return f"{height}x{width}" + ("" if height == width else " (height x width)")


def duration(seconds: float) -> str:
    """Return a duration in the units that fit: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
