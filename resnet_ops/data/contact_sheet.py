"""Draw a contact sheet: examples of each class as one picture, a row per class.

Knows pixels and text only; the examples are collected in image_statistics.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROWS, COLUMNS = 20, 10
CELL = 128  # side of the square that an image is fitted into
GAP, MARGIN = 8, 32
LABEL_WIDTH = (72, 300)  # minimum and maximum
TITLE_HEIGHT, FOOTER_HEIGHT = 84, 40
PAPER, INK, PALE, EDGE = "#ffffff", "#1f2328", "#6e7781", "#d0d7de"


@dataclass(frozen=True)
class SheetRow:
    """A row of the sheet: a class's name, a note below it, and its examples, each (H, W, C) uint8."""

    name: str
    note: str
    images: tuple[np.ndarray, ...]


def choose_examples(labels: np.ndarray) -> np.ndarray:
    """Choose rows of at most `COLUMNS` images of at most `ROWS` classes, both evenly spread over all."""
    classes = _evenly(np.unique(labels), ROWS)
    return np.concatenate([_evenly(np.flatnonzero(labels == label), COLUMNS) for label in classes])


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(items[np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)])


def fit_to_cell(pixels: np.ndarray) -> Image.Image:
    """Scale an image to a cell: small ones up by a whole factor without blur, large ones down."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    if factor := CELL // max(image.size):
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def draw_contact_sheet(title: str, subtitle: str, rows: Sequence[SheetRow], footer: str = "") -> Image.Image:
    """Draw a contact sheet.

    Args:
        title: The first line.
        subtitle: The line below.
        rows: From top to bottom; a row's examples beyond `COLUMNS` are left out.
        footer: The line at the bottom.
    """
    large, medium, small = (ImageFont.load_default(size) for size in (30, 20, 16))
    thumbnails = [[fit_to_cell(pixels) for pixels in row.images[:COLUMNS]] for row in rows]
    flat = [image for images in thumbnails for image in images]
    cell = max((image.width for image in flat), default=CELL), max((image.height for image in flat), default=CELL)
    longest = max((medium.getlength(row.name) for row in rows), default=0)
    label = int(min(max(longest, *(small.getlength(row.note) for row in rows), LABEL_WIDTH[0]), LABEL_WIDTH[1]))
    left, columns = MARGIN + label + 2 * GAP, max(map(len, thumbnails), default=0)
    text_width = int(max(large.getlength(title), small.getlength(subtitle), small.getlength(footer)))
    width = max(left + columns * (cell[0] + GAP) - GAP, MARGIN + text_width) + MARGIN
    height = MARGIN + TITLE_HEIGHT + len(rows) * (cell[1] + GAP) - GAP + (FOOTER_HEIGHT if footer else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write = partial(draw.text, anchor="ls")
    write((MARGIN, MARGIN + 24), title, INK, large)
    write((MARGIN, MARGIN + 52), subtitle, PALE, small)
    for number, (row, images) in enumerate(zip(rows, thumbnails, strict=True)):
        top = MARGIN + TITLE_HEIGHT + number * (cell[1] + GAP)
        middle = top + cell[1] // 2
        write((MARGIN + label, middle - 1), _shorten(row.name, medium, label), INK, medium, anchor="rs")
        write((MARGIN + label, middle + 19), row.note, PALE, small, anchor="rs")
        for column, image in enumerate(images):
            x = left + column * (cell[0] + GAP) + (cell[0] - image.width) // 2
            y = top + (cell[1] - image.height) // 2
            draw.rectangle(
                (x - 1, y - 1, x + image.width, y + image.height), outline=EDGE
            )  # or white images would have no edge
            sheet.paste(image, (x, y))
    if footer:
        write((MARGIN, height - MARGIN), footer, PALE, small)
    return sheet


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
