"""The image in the body of a request, however the client wraps it: as it is, in a form, or as base64 in JSON.

Clients keep the habits of other services: what is an image is told by what it is, not by the name of a field.
"""

import base64
import email.message
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

HOW = (
    "send the image itself (curl --data-binary @photo.jpg), a form (curl -F image=@photo.jpg), or JSON "
    '({"image": "BASE64"})'
)
MAX_PARTS = 100  # of a form
DATA_URL = re.compile(r"data:[\w/.+;=-]*;base64,")
SHORTEST = 32  # characters of base64: no image has fewer, and most other texts of a request do
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+")
FORM = re.compile(r"[\w.%\[\]-]{1,60}=")


class BodyError(Exception):
    """A body holds no image, or several; the message says what to send instead."""


def extract_image(body: bytes, content_type: str) -> bytes:
    """Return the image in a body: the file of a form, or the only text of JSON or of a form that is base64.

    Raises:
        BodyError: There is no image, or there are several.
    """
    try:
        if content_type.lower().startswith("multipart/"):
            images = list(_of_form(body, content_type))
        elif (texts := _texts(body)) is not None:
            images = [image for text in texts if (image := _decoded(text)) is not None]
        else:
            return body
    except (ValueError, RecursionError):
        raise BodyError(f"the request cannot be read; {HOW}") from None
    if len(images) != 1:
        count = f"{len(images)} images in one request" if images else "no image in the request"
        raise BodyError(f"{count}; {HOW}")
    return images[0]


def _of_form(body: bytes, content_type: str) -> Iterator[bytes]:
    """Yield the files of a form, and its texts that are images."""
    header = email.message.Message()
    header["Content-Type"] = content_type
    delimiter = f"\r\n--{header.get_boundary('')}".encode()
    for part in (b"\r\n" + body).split(delimiter, MAX_PARTS)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        image = _decoded(content.decode()) if content.isascii() else None
        if image is not None or b"filename" in head.lower():
            yield image or content


def _texts(body: bytes) -> list[str] | None:
    """Return the texts in JSON or in a form without files, or a body that is all base64; None of anything else.

    That is told by its first characters: clients say of anything that it is JSON, or a form.
    """
    if body.lstrip()[:1] in (b"{", b"[", b'"'):
        return list(_strings(json.loads(body)))
    if not body.isascii():
        return None
    text = body.decode().strip()
    if FORM.match(text) and text.isprintable():
        # A + that was not escaped is read as a blank.
        return [value.replace(" ", "+") for _, value in urllib.parse.parse_qsl(text, max_num_fields=MAX_PARTS)]
    return [text] if _decoded(text) is not None else None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)


def _decoded(text: str) -> bytes | None:
    """Return what a text is in base64, of either alphabet, with or without line breaks, padding and `data:`."""
    lines = DATA_URL.sub("", text.strip(), count=1).split()
    encoded = "".join(lines).rstrip("=")
    is_text = any(len(line) < SHORTEST for line in lines[:-1])  # such as the header of a PPM image
    if is_text or len(encoded) < SHORTEST or len(encoded) % 4 == 1 or not BASE64.fullmatch(encoded):
        return None
    return base64.b64decode(encoded.translate(str.maketrans("-_", "+/")) + "=" * (-len(encoded) % 4))
