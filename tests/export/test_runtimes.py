"""Every form of export gives the same logits in every runtime, for images of many sizes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet_ops.data.decode import decode
from resnet_ops.errors import UserError
from resnet_ops.export import graph, precision, runtime, untrusted
from resnet_ops.export.classifier import normalize_pixels
from resnet_ops.export.config import ValidateConfig
from resnet_ops.export.metadata import Precision, Preprocessing
from resnet_ops.export.other_runtimes import OPENCV, OPENVINO
from resnet_ops.export.reference import Reference
from resnet_ops.export.tolerances import Comparison, tolerances_of
from resnet_ops.export.validate import validate_onnx
from resnet_ops.training.checkpoint import Checkpoint
from tests.export.browser import needs_onnxruntime_web, run_in_browser
from tests.export.samples import RGB, copy, finish, make_checkpoint, make_images, png, verify_model

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
FORMS = [(precision, raw) for precision in PRECISIONS for raw in (False, True)]
# Resized to 50, cropped to 40 x 36: both are more than a block.
CROP = (40, 36)
SIZES = [(50, 50), (57, 63), (31, 20), (20, 31), (9, 7), (300, 451)]
BROWSER = "onnxruntime-web"
WHERE = [runtime.CPU, OPENVINO, OPENCV, pytest.param(BROWSER, marks=needs_onnxruntime_web)]
Form = tuple[Precision, bool]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A network whose images are resized and cropped."""
    return make_checkpoint(tmp_path_factory.mktemp("c") / "c.safetensors", "resnet8", CROP, stored=50)


@pytest.fixture(scope="module")
def files(small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    """The file of every form."""
    folder = tmp_path_factory.mktemp("forms")
    steps = Preprocessing.of(small.info, "normalized")
    x = normalize_pixels(make_images((57, 63)).sample(64, steps.crop), steps)
    fp32 = graph.to_onnx(small.info, small.model, 18)
    models = {
        "fp32": fp32,
        "fp16": precision.to_fp16(copy(fp32), x)[0],
        "int8": precision.to_int8(copy(fp32), x, runtime.CPU)[0],
    }
    made = {}
    for form in FORMS:
        made[form] = folder / graph.file_name(form[0], "raw" if form[1] else "normalized")
        graph.write(finish(copy(models[form[0]]), small, raw=form[1], precision=form[0]), made[form])
    return made


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Batches of images, each of another size."""
    return [np.stack(make_images(size, count=2).at_original_size(2, RGB)) for size in SIZES]


def decoded(images: list[np.ndarray], steps: Preprocessing) -> list[np.ndarray]:
    return [np.stack([decode(png(image), steps.crop) for image in batch]) for batch in images]


@pytest.fixture(scope="module")
def inputs(small: Checkpoint, images: list[np.ndarray]) -> dict[bool, list[np.ndarray]]:
    """The images as files take them, raw or not."""
    steps = Preprocessing.of(small.info, "normalized")
    return {True: images, False: [normalize_pixels(batch, steps) for batch in decoded(images, steps)]}


@pytest.fixture(scope="module")
def expected(small: Checkpoint, images: list[np.ndarray]) -> np.ndarray:
    """What torch computes in float64 for what Pillow makes of the images."""
    steps = Preprocessing.of(small.info, "normalized")
    return np.concatenate([Reference(small).logits(batch) for batch in decoded(images, steps)])


@pytest.fixture(scope="module")
def in_browser(files: dict[Form, Path], inputs: dict[bool, list[np.ndarray]]) -> dict[Path, list[np.ndarray]]:
    return run_in_browser({file: inputs[raw] for (_, raw), file in files.items()})


@pytest.mark.parametrize(("number_format", "raw"), FORMS)
@pytest.mark.parametrize("where", WHERE)
def test_the_logits_are_the_same_everywhere(
    where: str,
    number_format: Precision,
    raw: bool,
    files: dict[Form, Path],
    inputs: dict[bool, list[np.ndarray]],
    expected: np.ndarray,
    request: pytest.FixtureRequest,
) -> None:
    file = files[number_format, raw]
    if (where, number_format) == (OPENCV, "int8"):
        with pytest.raises(UserError, match="OpenCV does not run int8 files"):
            validate_onnx(ValidateConfig(file=file, runtime="opencv"))
        with pytest.raises(UserError, match="OpenCV cannot"):  # when it can, the refusal goes
            runtime.load(file, OPENCV).run(inputs[raw][0])
        return

    def run(provider: str) -> np.ndarray:
        session = runtime.load(file, provider)
        return np.concatenate([session.run(x) for x in inputs[raw]])

    logits = np.concatenate(request.getfixturevalue("in_browser")[file]) if where == BROWSER else run(where)
    to_torch, to_cpu = Comparison(expected, logits), Comparison(run(runtime.CPU), logits)
    tolerances = tolerances_of(untrusted.scan(file)[1], runtime.CPU)
    assert to_torch.max_rel <= tolerances.largest
    assert to_torch.mean_rel <= tolerances.mean
    if number_format == "int8":
        assert to_cpu.mean_rel <= tolerances.mean
    else:
        assert to_cpu.max_rel <= 1e-3


def resized_by_operator(raw: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that takes raw pixels as version 0.1 exported it: with the operator `Resize`, in uint8."""
    model = copy(raw)
    centred = next(node for node in model.graph.node if node.output[0] == "preprocess/centred")
    centred.input[0] = "old/floats"
    for name, value in (("axes", [2, 3]), ("cut", CROP)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"old/{name}"))
    new = [
        helper.make_node("Transpose", ["images"], ["old/upright"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["old/upright"], ["old/outer"], start=0, end=2),
        helper.make_node("Concat", ["old/outer", "preprocess/wanted"], ["old/sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["old/upright", "", "", "old/sizes"],
            ["old/resized"],
            mode="linear",
            antialias=1,
            exclude_outside=1,
        ),
        helper.make_node("Add", ["preprocess/start", "old/cut"], ["old/end"]),
        helper.make_node("Slice", ["old/resized", "preprocess/start", "old/end", "old/axes"], [graph.PIXELS]),
        helper.make_node("Cast", [graph.PIXELS], ["old/floats"], to=TensorProto.FLOAT),
    ]
    at = next(i for i, node in enumerate(model.graph.node) if node.output[0] == graph.PIXELS)
    following = [*model.graph.node][at + 1 :]
    del model.graph.node[at:]
    model.graph.node.extend([*new, *following])
    return model


@pytest.mark.parametrize("where", [runtime.CPU, OPENVINO, OPENCV])
def test_a_file_is_verified_where_it_will_run(
    where: str, small: Checkpoint, files: dict[Form, Path], tmp_path: Path
) -> None:
    """Files of version 0.1 resize with an operator that even ONNX Runtime's CPU provider rounds in another way."""
    model, reference, images = onnx.load(files["fp32", True]), Reference(small), make_images((57, 63), count=20)
    report = verify_model(model, reference, images, tmp_path, provider=where)
    assert report.validated, report.failed_checks
    assert report.provider == where
    assert bool(report.nodes_by_provider) == (where == runtime.CPU)
    earlier = verify_model(resized_by_operator(model), reference, images, tmp_path, provider=where, black_box=True)
    failed = {check.name: check.result for check in earlier.failed_checks}
    assert ("resize and crop" in failed) == (where != runtime.CPU), failed
    assert "resized images" in failed
