"""The faults of programs that use an exported file, each a step done otherwise, with what to change in the program.

They are what people report most (pytorch 80133, onnxruntime 26504, ultralytics 24893, Pillow 2718): the color order,
the normalization, the layout, what is read, the resize. The steps are in `program_steps`; `fault_search` finds
out which of the faults explains a program's answers.
"""

import io
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from resnet_ops.data.decode import decode_whole
from resnet_ops.export.classifier import natural_order, softmax
from resnet_ops.export.metadata import ModelMetadata, Preprocessing
from resnet_ops.export.program_steps import (
    BILINEAR,
    BLACK,
    FILTERS,
    GREY_114,
    Fault,
    Kind,
    affine,
    channels_first,
    cover,
    cover_box,
    cover_exactly,
    keep,
    letterbox,
    only_crop,
    squash,
    squash_and_crop,
)


def input_faults(metadata: ModelMetadata) -> list[Fault]:
    """Return the faults before the network that a program which uses this file can have, the likeliest first."""
    raw, steps = metadata.input == "raw", metadata.preprocessing
    faults = [*_color_faults(steps.channels), *(_raw_normalizations(steps) if raw else _normalizations(steps))]
    faults += [*_layout_faults(raw, steps), *_read_faults(steps.channels), *_resize_faults(raw, steps)]
    return faults


# The color order


def _color_faults(channels: int) -> Iterator[Fault]:
    if channels == 3:
        yield Fault(
            "BGR",
            "color",
            lambda x: x[..., ::-1],
            "Images are in RGB order: image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) after cv2.imread.",
        )
        yield Fault(
            "grey instead of RGB",
            "color",
            lambda x: np.repeat(np.round(x @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None], 3, 3),
            "Keep the colors: Image.open(path).convert('RGB'), or cv2.imread(path, cv2.IMREAD_COLOR).",
        )
    yield Fault("inverted", "color", lambda x: 255 - x, "Do not invert the pixels: 0 is black, 255 white.")


# The normalization


def _each(pixels: np.ndarray, normalize: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.stack([normalize(image) for image in pixels.astype(np.float32)])


def _wrapped(pixels: np.ndarray, steps: Preprocessing) -> np.ndarray:
    means = np.round(np.array(steps.mean) * 255).astype(np.uint8)
    return affine(pixels - means, 1, 0, np.array(steps.std) * 255)


def _normalizations(steps: Preprocessing) -> Iterator[Fault]:
    rgb, (mean, std) = steps.channels == 3, (np.array(steps.mean), np.array(steps.std))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if rgb else (0.449, 0.226)
    formula = f"x = (pixels / 255 - {_list(steps.mean)}) / {_list(steps.std)}"
    table: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("mean and std not applied", lambda x: affine(x, 1 / 255, 0, 1)),
        ("not divided by 255", lambda x: affine(x, 1, mean, std)),
        ("no normalization, 0 to 255", lambda x: affine(x, 1, 0, 1)),
        ("mean and std of ImageNet", lambda x: affine(x, 1 / 255, *imagenet)),
        ("mean and std 0.5, -1 to 1", lambda x: affine(x, 1 / 255, 0.5, 0.5)),
        ("divided by 255 twice", lambda x: affine(x, 1 / 255**2, mean, std)),
        ("std not applied", lambda x: affine(x, 1 / 255, mean, 1)),
        ("mean not applied", lambda x: affine(x, 1 / 255, 0, std)),
        ("mean and std swapped", lambda x: affine(x, 1 / 255, std, mean)),
        ("multiplied by std", lambda x: affine(x, 1 / 255, mean, 1 / std)),
        ("mean added", lambda x: affine(x, 1 / 255, -mean, std)),
        ("mean subtracted in uint8, which wraps around", lambda x: _wrapped(x, steps)),
        ("pixels as signed bytes, -128 to 127", lambda x: affine(x.view(np.int8), 1 / 255, mean, std)),
        (
            "each image normalized by its own mean and std",
            lambda x: _each(x, lambda i: (i - i.mean()) / (i.std() or 1)),
        ),
        ("each image stretched to 0 to 1", lambda x: _each(x, lambda i: (i - i.min()) / (np.ptp(i) or 1))),
    ]
    if rgb:
        caffe = (123.68, 116.779, 103.939)
        table += [
            ("mean and std in BGR order", lambda x: affine(x, 1 / 255, mean[::-1], std[::-1])),
            ("one std for all channels, as cv2.dnn.blobFromImage", lambda x: affine(x, 1 / 255, mean, std.mean())),
            ("mean of ImageNet subtracted, 0 to 255, as in Caffe", lambda x: affine(x, 1, caffe, 1)),
        ]
    else:
        table.append(("mean and std of MNIST", lambda x: affine(x, 1 / 255, 0.1307, 0.3081)))
    for name, normalize in table:
        yield Fault(name, "normalize", partial(_ignoring_steps, normalize), f"Normalize as the file says: {formula}.")


def _ignoring_steps(normalize: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, _: Preprocessing) -> np.ndarray:
    return normalize(np.ascontiguousarray(pixels))


def _raw_normalizations(steps: Preprocessing) -> Iterator[Fault]:
    remedy = "Give the pixels as they are, uint8 from 0 to 255: this file normalizes them itself."
    mean, std = np.array(steps.mean), np.array(steps.std)
    for name, normalize in (
        ("divided by 255 before", lambda x: affine(x, 1 / 255, 0, 1)),
        ("normalized before", lambda x: affine(x, 1 / 255, mean, std)),
        ("normalized before to -1 to 1", lambda x: affine(x, 1 / 255, 0.5, 0.5)),
    ):
        yield Fault(name, "normalize", partial(_truncated, normalize), remedy)


def _truncated(normalize: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, _: Preprocessing) -> np.ndarray:
    return np.asarray(normalize(pixels).astype(np.int64).astype(np.uint8))


def _list(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


# The layout


def _layout_faults(raw: bool, steps: Preprocessing) -> Iterator[Fault]:
    last = keep if raw else channels_first
    if not raw and steps.channels > 1:
        yield Fault(
            "reshaped to (C, H, W) instead of transposed",
            "layout",
            lambda x: x.reshape(x.shape[0], x.shape[3], x.shape[1], x.shape[2]),
            "Move the channels to the front, x = x.transpose(2, 0, 1); reshape mixes rows and channels.",
        )
        yield Fault(
            "channels reversed after the normalization",
            "layout",
            lambda x: last(x[..., ::-1]),
            "Images are in RGB order to the end: remove what reverses the channels.",
        )
    if raw or steps.height == steps.width:
        yield Fault(
            "height and width exchanged",
            "layout",
            lambda x: last(x.transpose(0, 2, 1, 3)),
            "Keep rows as rows: " + ("images are (H, W, C)." if raw else "x = x.transpose(2, 0, 1), not (2, 1, 0)."),
        )
    yield Fault("upside down", "layout", lambda x: last(x[:, ::-1]), "Give the rows from the top down.")
    yield Fault("mirrored", "layout", lambda x: last(x[:, :, ::-1]), "Do not mirror images.")


# Reading


def _open(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _without_orientation(encoded: bytes, channels: int) -> np.ndarray:
    return _pixels(_open(encoded), channels)


def _composite(color: str, encoded: bytes, channels: int) -> np.ndarray:
    image = _open(encoded)
    if not image.has_transparency_data:
        return decode_whole(encoded, channels)
    image = ImageOps.exif_transpose(image).convert("RGBA")
    return _pixels(Image.alpha_composite(Image.new("RGBA", image.size, color), image), channels)


def _palette_indices(encoded: bytes, channels: int) -> np.ndarray:
    image = _open(encoded)
    return (
        _pixels(Image.fromarray(np.asarray(image)), channels) if image.mode == "P" else decode_whole(encoded, channels)
    )


def _clipped(encoded: bytes, channels: int) -> np.ndarray:
    image = _open(encoded)
    if not image.mode.startswith("I"):
        return decode_whole(encoded, channels)
    return _pixels(Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)), channels)


def _grey_of(weights: tuple[float, float, float], encoded: bytes, _: int) -> np.ndarray:
    return np.asarray(np.round(decode_whole(encoded, 3) @ np.array(weights)).astype(np.uint8))[..., None]


def _read_faults(channels: int) -> Iterator[Fault]:
    if channels == 1:
        remedy = "Convert to grey as 0.299 R + 0.587 G + 0.114 B: Image.open(path).convert('L')."
        for name, weights in (
            ("grey of RGB taken for BGR", (0.114, 0.587, 0.299)),
            ("grey as the mean of the channels", (1 / 3, 1 / 3, 1 / 3)),
            ("the red channel only", (1, 0, 0)),
            ("the blue channel only", (0, 0, 1)),
        ):
            yield Fault(name, "read", partial(_grey_of, weights), remedy)
    yield Fault(
        "EXIF orientation ignored",
        "read",
        _without_orientation,
        "Turn photos upright: image = ImageOps.exif_transpose(Image.open(path)).",
    )
    drop = "Drop the alpha channel, image.convert('RGB'), and do not composite it."
    yield Fault("transparency composited on white", "read", partial(_composite, "white"), drop)
    yield Fault("transparency composited on black", "read", partial(_composite, "black"), drop)
    remedy = "Convert images with a palette: Image.open(path).convert('RGB')."
    yield Fault("indices of the palette taken for pixels", "read", _palette_indices, remedy)
    remedy = "Scale 16-bit images to 8 bits: pixels / 257."
    yield Fault("16-bit pixels clipped to 255", "read", _clipped, remedy)


# The resize

MARGINS = (1 / 0.95, 1 / 0.9, 1 / 0.875, 256 / 224)  # of timm and torchvision
MARGIN_FILTERS = ("", "bicubic (Pillow)")


def _resize_faults(raw: bool, steps: Preprocessing) -> Iterator[Fault]:
    (box_height, box_width), size = steps.resize, f"{steps.height}x{steps.width}"
    box = str(box_height) if box_height == box_width else f"{box_height}x{box_width}"
    geometries: list[tuple[str, Callable[..., np.ndarray]]] = [
        ("", cover),
        (f"squashed to {size}", squash),
        (f"resized to cover {size} instead of {box}", cover_exactly),
        (f"squashed to {box_height}x{box_width}, then cropped", squash_and_crop),
        ("cropped at the top left instead of the center", partial(cover, centered=False)),
        ("letterboxed on grey", partial(letterbox, GREY_114)),
        ("letterboxed on black", partial(letterbox, BLACK)),
        (f"{size} cropped without resizing", only_crop),
    ]
    geometries += [
        (f"resized to cover {'x'.join(map(str, dict.fromkeys(other)))} instead of {box}", partial(cover_box, other))
        for other in _margins(steps)
    ]
    remedy = (
        f"Resize the image to cover {box} with its shape kept, cut {size} from the center; the filter is {BILINEAR}."
    )
    if raw:
        remedy = "Give the image at its own size: this file resizes and crops it itself."
    for geometry, fit in geometries:
        has_margin = isinstance(fit, partial) and fit.func is cover_box
        for filter_name, resample in FILTERS[:1] if fit is only_crop else FILTERS:
            if not (geometry or filter_name) or (has_margin and filter_name not in MARGIN_FILTERS):
                continue
            suffix = ", before the file does" if raw else ""
            yield Fault(
                ", ".join(part for part in (geometry, filter_name) if part) + suffix,
                "resize",
                partial(fit, resample),
                remedy,
                geometry=geometry and geometry + suffix,
                filter_name=filter_name,
            )


def _margins(steps: Preprocessing) -> list[tuple[int, int]]:
    """Return the sizes to cover of usual programs, rounded or rounded down, which are not those of the file."""
    sides = ((steps.height * margin, steps.width * margin) for margin in MARGINS)
    sizes = {(rounded(a), rounded(b)) for a, b in sides for rounded in (round, int)}
    return sorted(sizes - {steps.resize, (steps.height, steps.width)})


# The output


def as_told(outputs: np.ndarray, metadata: ModelMetadata, kind: Kind) -> np.ndarray:
    """Return outputs of the file (N, classes) as logits if `kind` is that, otherwise as probabilities."""
    if metadata.output == "logits":
        return outputs if kind == "logits" else softmax(outputs)
    return np.log(outputs.clip(1e-30)) if kind == "logits" else outputs


def output_faults(metadata: ModelMetadata, kind: Kind) -> list[Fault]:
    """Return the faults after the network, of a program that tells classes, probabilities or logits (`kind`).

    Their functions map outputs of the file (N, classes), and the lines of the answers in theirs (N,), to what the
    program tells as `as_told` does; rows of NaN are not known.
    """
    names, convert = metadata.class_names, partial(as_told, metadata=metadata, kind=kind)
    faults = []
    if kind == "probabilities":
        again = "Apply softmax once" + (": this file has it." if metadata.output == "probabilities" else ".")
        faults.append(Fault("softmax applied twice", "output", lambda x, _: softmax(convert(x)), again))
        remedy = "Use softmax over the classes: each image has one class."
        faults.append(
            Fault("sigmoid instead of softmax", "output", lambda x, _: 1 / (1 + np.exp(-x.clip(-80))), remedy)
        )
    remedy = "Read the classes from the file's metadata, json.loads(metadata['class_names']), in that order."
    for name, order in (
        ("class names in alphabetical order", sorted(names)),
        ("class names in natural order, 9 before 10", sorted(names, key=natural_order)),
        ("class names sorted without regard to case", sorted(names, key=str.casefold)),
    ):
        if tuple(order) != names:
            faults.append(
                Fault(name, "output", _after(convert, _reorder, [names.index(each) for each in order]), remedy)
            )
    number = "Number the classes from 0, without a background class."
    step = "Write each answer beside its own image: the lists of images and of answers are out of step."
    for name, function, change in (
        ("class names in reverse order", _after(convert, _reorder, list(range(len(names)))[::-1]), remedy),
        ("class numbers one too high", _after(convert, _renumber, 1), number),
        ("class numbers one too low", _after(convert, _renumber, -1), number),
        ("each answer is that of the image before", _after(convert, _shift, -1), step),
        ("each answer is that of the next image", _after(convert, _shift, 1), step),
    ):
        faults.append(Fault(name, "output", function, change, combines=False))
    return faults


def _after(
    convert: Callable[[np.ndarray], np.ndarray], change: Callable[..., np.ndarray], how: object
) -> Callable[..., np.ndarray]:
    return lambda outputs, lines: change(how, convert(outputs), lines)


def _reorder(order: list[int], x: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Return what is told under each class, if output `i` is taken for class `order[i]`."""
    reordered = np.empty_like(x)
    reordered[:, order] = x
    return reordered


def _renumber(step: int, x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.roll(x, step, 1)


def _shift(step: int, x: np.ndarray, lines: np.ndarray) -> np.ndarray:
    place = {int(line): index for index, line in enumerate(lines)}
    rows = [place.get(int(line) + step, -1) for line in lines]
    shifted = np.array(x[rows], np.float64)
    shifted[np.array(rows) < 0] = np.nan
    return shifted
