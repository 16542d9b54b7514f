"""A contact sheet: examples of each class as a picture, a row a class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROWS, COLUMNS = 20, 10
CELL = 128  # side of the square that an image is fitted into
GAP, MARGIN = 8, 32
LABEL_WIDTH = (72, 300)  # the least and the most
TITLE_HEIGHT, FOOT_HEIGHT = 84, 40
PAPER, INK, PALE, EDGE = "#ffffff", "#1f2328", "#6e7781", "#d0d7de"


@dataclass(frozen=True)
class SheetRow:
    """A class's name, what is said below it, and its examples, each (H, W, C) uint8."""

    name: str
    note: str
    images: tuple[np.ndarray, ...]


def pick(labels: np.ndarray) -> np.ndarray:
    """Rows of at most `COLUMNS` images of at most `ROWS` classes, both evenly from all that there are."""
    classes = _spread(np.unique(labels), ROWS)
    return np.concatenate([_spread(np.flatnonzero(labels == label), COLUMNS) for label in classes])


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(items[np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)])


def fitted(pixels: np.ndarray) -> Image.Image:
    """One image as it appears: small ones enlarged a whole number of times without blur, large ones reduced."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    if times := CELL // max(image.size):
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def contact_sheet(title: str, subtitle: str, rows: Sequence[SheetRow], foot: str = "") -> Image.Image:
    """Draw the sheet.

    Args:
        title: Its first line.
        subtitle: The line below.
        rows: From top to bottom; examples of one beyond `COLUMNS` are left out.
        foot: A line at its end.
    """
    large, medium, small = (ImageFont.load_default(size) for size in (30, 20, 16))
    thumbnails = [[fitted(pixels) for pixels in row.images[:COLUMNS]] for row in rows]
    every = [image for images in thumbnails for image in images]
    cell = max((image.width for image in every), default=CELL), max((image.height for image in every), default=CELL)
    room = max((medium.getlength(row.name) for row in rows), default=0)
    label = int(min(max(room, *(small.getlength(row.note) for row in rows), LABEL_WIDTH[0]), LABEL_WIDTH[1]))
    left, columns = MARGIN + label + 2 * GAP, max(map(len, thumbnails), default=0)
    least = int(max(large.getlength(title), small.getlength(subtitle), small.getlength(foot)))
    width = max(left + columns * (cell[0] + GAP) - GAP, MARGIN + least) + MARGIN
    height = MARGIN + TITLE_HEIGHT + len(rows) * (cell[1] + GAP) - GAP + (FOOT_HEIGHT if foot else 0) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write = partial(draw.text, anchor="ls")
    write((MARGIN, MARGIN + 24), title, INK, large)
    write((MARGIN, MARGIN + 52), subtitle, PALE, small)
    for number, (row, images) in enumerate(zip(rows, thumbnails, strict=True)):
        top = MARGIN + TITLE_HEIGHT + number * (cell[1] + GAP)
        middle = top + cell[1] // 2
        write((MARGIN + label, middle - 1), _short(row.name, medium, label), INK, medium, anchor="rs")
        write((MARGIN + label, middle + 19), row.note, PALE, small, anchor="rs")
        for column, image in enumerate(images):
            x = left + column * (cell[0] + GAP) + (cell[0] - image.width) // 2
            y = top + (cell[1] - image.height) // 2
            draw.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=EDGE)  # for white images
            sheet.paste(image, (x, y))
    if foot:
        write((MARGIN, height - MARGIN), foot, PALE, small)
    return sheet


def _short(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
