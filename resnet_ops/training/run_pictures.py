"""The pictures in a run's folder, which tracking shows: augmented training images, the best epoch's confusion matrix.

By Pillow, as matplotlib takes a second and 60 MB to import; the charts of reports are in `resnet_ops.reporting`.
"""

import contextlib
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from resnet_ops import files
from resnet_ops.data.contact_sheet import EDGE, GAP, INK, PALE, PAPER, fit_to_cell
from resnet_ops.errors import UserError
from resnet_ops.runs import EPOCH_OF_PICTURE, Run, RunPicture

EXAMPLES, COLUMNS = 16, 4
BLUE, VERMILION = np.array([0, 114, 178]), np.array([213, 94, 0])
NUMBERED, NAMED = 20, 40  # classes up to which cells have numbers, and rows and columns their names
MATRIX_SIDE = 640  # of a matrix without numbers; with more classes a pixel each
NUMBERED_CELL, MAX_LABEL, TITLE_HEIGHT = 36, 140, 24


def write_picture(run: Run, picture: RunPicture, image: Image.Image, epoch: int) -> None:
    """Write a picture into the run's folder, unless that fails: it is not worth stopping for."""
    content, note = io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_text(EPOCH_OF_PICTURE, str(epoch))
    image.save(content, "PNG", pnginfo=note)
    with contextlib.suppress(OSError, UserError):
        files.make_folder(run.pictures, exist_ok=True)
        files.write_atomically(run.picture_file(picture), content.getvalue(), patience_s=0)


def draw_augmented(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Draw the first images of a batch (N, C, H, W) as the network gets it: augmented, normalized by `mean`, `std`."""
    shift, scale = (np.array(values, np.float32) for values in (mean, std))
    pixels = x[:EXAMPLES].float().cpu().permute(0, 2, 3, 1).numpy() * scale + shift
    cells = [fit_to_cell(image) for image in (255 * pixels).round().clip(0, 255).astype(np.uint8)]
    (width, height), columns = cells[0].size, min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), PAPER)
    for n, cell in enumerate(cells):
        sheet.paste(cell, (n % columns * (width + GAP), n // columns * (height + GAP)))
    return sheet


def draw_confusion(counts: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix (K, K): rows are true classes, columns predicted ones, shades shares of the row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    depth = np.where(shares > 0, 0.2 + 0.8 * np.sqrt(shares), 0)[..., None]  # as in the report's
    colors = np.where(np.eye(len(counts), dtype=bool)[..., None], BLUE, VERMILION)
    cells = Image.fromarray((255 + depth * (colors - 255)).round().astype(np.uint8))
    side = NUMBERED_CELL if len(counts) <= NUMBERED else max(1, MATRIX_SIDE // len(counts))
    matrix = cells.resize((side * len(counts), side * len(counts)), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(matrix)
    for (row, column), count in np.ndenumerate(counts if len(counts) <= NUMBERED else counts[:0]):
        if count:
            center = (column + 0.5) * side, (row + 0.5) * side
            draw.text(center, str(count), PAPER if depth[row, column, 0] > 0.6 else INK, _font(), anchor="mm")
    names = class_names if len(counts) <= NAMED else [""] * len(counts)
    rows, columns = _labels(names, side), _labels(names[::-1], side).transpose(Image.Transpose.ROTATE_270)
    left, top = rows.width, columns.height + TITLE_HEIGHT
    title = "rows: true classes, columns: predicted"
    width = max(left + matrix.width, 2 * GAP + int(_font().getlength(title)))
    sheet = Image.new("RGB", (width + GAP, top + matrix.height + GAP), PAPER)
    ImageDraw.Draw(sheet).text((GAP, GAP), title, PALE, _font())
    for part, corner in ((columns, (left, TITLE_HEIGHT)), (rows, (0, top)), (matrix, (left, top))):
        sheet.paste(part, corner)
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + matrix.width, top + matrix.height), outline=EDGE)
    return sheet


def _labels(names: Sequence[str], side: int) -> Image.Image:
    """Draw the names of rows of a height, ending at the right."""
    width = GAP + int(min(MAX_LABEL, max(map(_font().getlength, names)))) + GAP
    labels = Image.new("RGB", (width, side * len(names)), PAPER)
    for n, name in enumerate(names):
        ImageDraw.Draw(labels).text((width - GAP, (n + 0.5) * side), name, INK, _font(), anchor="rm")
    return labels


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
