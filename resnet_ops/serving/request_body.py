"""The image in the body of a request, however the client wraps it: as it is, in a form, or as base64 in JSON.

Clients keep the habits of other services: what is an image is told by what it is, not by the name of a field.
"""

import base64
import binascii
import email.message
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

HOW = (
    "send the image itself (curl --data-binary @photo.jpg), a form (curl -F image=@photo.jpg), or JSON "
    '({"image": "BASE64"})'
)
MAX_PARTS = 100  # of a form
DATA_URL = re.compile(r"\s*data:[\w/.+;=-]*;base64,")
SHORTEST = 32  # characters of base64: no image has fewer, and most other texts of a request do
FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
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
        elif body.lstrip()[:1] in (b"{", b"[", b'"'):  # clients say of anything that it is JSON, or a form
            images = _all_decoded(_strings(json.loads(body)))
        elif not body.isascii():
            return body
        elif FORM.match(text := body.decode().strip()) and text.isprintable():
            # A + that was not escaped is read as a blank.
            values = urllib.parse.parse_qsl(text, max_num_fields=MAX_PARTS)
            images = _all_decoded(value.replace(" ", "+") for _, value in values)
        else:
            return _decoded(text) or body
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


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)


def _all_decoded(texts: Iterable[str]) -> list[bytes]:
    return [image for text in texts if (image := _decoded(text)) is not None]


def _decoded(text: str) -> bytes | None:
    """Return what a text is in base64, of either alphabet, with or without line breaks, padding and `data:`."""
    prefix = DATA_URL.match(text)
    lines = text[prefix.end() if prefix else 0 :].split()
    is_text = any(len(line) < SHORTEST for line in lines[:-1])  # such as the header of a PPM image
    encoded = "".join(lines).rstrip("=")
    if is_text or len(encoded) < SHORTEST or not encoded.isascii():
        return None
    padded = encoded.encode().translate(FROM_URL_SAFE) + b"=" * (-len(encoded) % 4)
    try:  # not with a regular expression: of a large body it would keep all other requests waiting
        return base64.b64decode(padded, validate=True)
    except binascii.Error:
        return None
