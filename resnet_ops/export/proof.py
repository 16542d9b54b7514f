"""Tries to refute an export: the file on disk against the checkpoint on disk, from raw pixels on.

Two pipelines answer every image. One is the checkpoint's: our own preprocessing, torch, fp32.
The other knows the file only: the preprocessing that its metadata tells, ONNX Runtime. They
share nothing but the pixels, so that a fault in the graph, in the weights or in the metadata
shows as a difference.

Differences are measured as max |difference| / max |logit|. A clean fp32 export has about 5e-7;
rounding to TF32 or fp16 gives 4e-4, a neighbouring checkpoint 2e-3. Accuracy alone tells none of
these apart, and an absolute limit fails sound models whose logits are large.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch

from resnet_ops.data.augment import normalise
from resnet_ops.data.cache import Images
from resnet_ops.errors import UserError
from resnet_ops.export import runtime
from resnet_ops.training.checkpoint import Checkpoint

BATCHES = (1, 7, 64)
EVAL_BATCH = 500
TOLERANCE = {runtime.CPU: 1e-5, runtime.CUDA: 1e-4}  # on CUDA sums are taken in another order
SAME_ACCURACY = 0.005  # bf16 on a GPU while training, fp32 here


@dataclass(frozen=True)
class Check:
    """One attempt at refutation: what was looked at, what was found, whether it held."""

    name: str
    found: str
    held: bool
    limit: str = ""


@dataclass
class Proof:
    """All that was tried against one file."""

    provider: str
    tolerance: float
    checks: list[Check] = field(default_factory=list)
    nodes_by_provider: dict[str, int] = field(default_factory=dict)
    images: int = 0
    max_abs_diff: float = float("nan")
    max_rel_diff: float = float("nan")
    top1_agreement: float = float("nan")
    val_accuracy_torch: float = float("nan")
    val_accuracy_onnx: float = float("nan")

    @property
    def validated(self) -> bool:
        """Whether everything held."""
        return bool(self.checks) and all(check.held for check in self.checks)

    @property
    def refuted_by(self) -> list[Check]:
        """What did not hold."""
        return [check for check in self.checks if not check.held]

    def attempt(self, name: str, check: Callable[[], tuple[str, bool]], limit: str = "") -> None:
        """Add a check; one that raises did not hold."""
        try:
            found, held = check()
        except Exception as error:  # whatever ONNX or ONNX Runtime raise on a faulty file refutes it
            lines = str(error).strip().splitlines() or [type(error).__name__]
            found, held = lines[0], False
        self.checks.append(Check(name, found, held, limit))


@dataclass(frozen=True)
class Comparison:
    """Logits of the same images from both pipelines, (N, classes) float64."""

    torch: np.ndarray
    onnx: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether there is no NaN or infinity on either side: NaN passes most comparisons."""
        return bool(np.isfinite(self.torch).all() and np.isfinite(self.onnx).all())

    @property
    def max_abs(self) -> float:
        """The largest |difference|."""
        return float(np.abs(self.torch - self.onnx).max())

    @property
    def max_rel(self) -> float:
        """The largest |difference|, as a share of the largest |logit|."""
        return self.max_abs / max(float(np.abs(self.torch).max()), 1e-12)


def prove(
    file: Path,
    checkpoint: Checkpoint,
    images: Images,
    *,
    opset: int,
    provider: str,
    tolerance: float | None = None,
    recorded_accuracy: float | None = None,
) -> Proof:
    """Try everything against an exported file.

    Args:
        file: The ONNX file.
        checkpoint: What it was made of, as read from disk.
        images: The whole validation set, raw.
        opset: The operator set that was asked for.
        provider: ONNX Runtime's name of the execution provider.
        tolerance: Largest max |difference| / max |logit|; by default `TOLERANCE`.
        recorded_accuracy: What training measured on the same images, where they are the same.
    """
    proof = Proof(provider, tolerance or TOLERANCE[provider], images=len(images))
    proof.attempt("file", lambda: _check_file(file, opset))
    try:
        session = runtime.load(file, provider)
    except UserError as error:
        proof.checks.append(Check("runtime", str(error), False))
        return proof
    proof.nodes_by_provider = session.nodes
    network = checkpoint.info.build_network()
    network.load_state_dict(checkpoint.model)
    network.eval()

    def compare(pixels: np.ndarray, batch: int) -> Comparison:
        info = checkpoint.info
        expected, found = [], []
        for start in range(0, len(pixels), batch):
            part = pixels[start : start + batch]
            with torch.inference_mode():
                expected.append(network(normalise(torch.from_numpy(part), info.mean, info.std)).double().numpy())
            found.append(session.run(session.preprocess(part)).astype(np.float64))
        return Comparison(np.concatenate(expected), np.concatenate(found))

    def within(pixels: np.ndarray, batches: tuple[int, ...]) -> tuple[str, bool]:
        pairs = [compare(pixels[:batch], batch) for batch in batches]
        worst = max(pair.max_rel for pair in pairs)
        finite = all(pair.finite for pair in pairs)
        return f"{worst:.1e}" if finite else "not finite", finite and worst <= proof.tolerance

    many = images.pixels[np.arange(max(BATCHES)) % len(images)]
    noise = np.random.default_rng(0).integers(0, 256, many.shape, np.uint8)
    batches = ", ".join(map(str, BATCHES))
    limit = f"{proof.tolerance:.0e}"
    proof.attempt("nodes", lambda: _check_nodes(session))
    proof.attempt("classes", lambda: _check_classes(session, checkpoint))
    proof.attempt(f"random pixels, batch {batches}", lambda: within(noise, BATCHES), limit)
    proof.attempt(f"real images, batch {batches}", lambda: within(many, BATCHES), limit)
    try:
        whole = compare(images.pixels, EVAL_BATCH)
    except Exception as error:  # as above: the file is refuted, not the validator broken
        proof.checks.append(Check("validation set", str(error).splitlines()[0], False))
        return proof
    _judge(proof, whole, images.labels)
    if recorded_accuracy is not None:
        apart = abs(proof.val_accuracy_torch - recorded_accuracy)
        proof.checks.append(
            Check("accuracy as in training", f"{apart:.2%} apart", apart <= SAME_ACCURACY, f"{SAME_ACCURACY:.1%}")
        )
    return proof


def _judge(proof: Proof, whole: Comparison, labels: np.ndarray) -> None:
    """The validation set: largest difference, top-1 agreement, accuracy of both."""
    proof.max_abs_diff, proof.max_rel_diff = whole.max_abs, whole.max_rel
    expected, found = whole.torch.argmax(1), whole.onnx.argmax(1)
    proof.top1_agreement = float((expected == found).mean())
    proof.val_accuracy_torch = float((expected == labels).mean())
    proof.val_accuracy_onnx = float((found == labels).mean())
    top = np.sort(whole.torch, axis=1)
    # Between two logits closer than the largest rounding error, either answer is right.
    rounding = min(whole.max_abs, proof.tolerance * float(np.abs(whole.torch).max()))
    ties = top[:, -1] - top[:, -2] <= 2 * rounding
    flips = (expected != found) & ~ties
    held = whole.finite and whole.max_rel <= proof.tolerance
    found_text = f"{whole.max_rel:.1e}" if whole.finite else "not finite"
    proof.checks.append(Check(f"validation set, {len(labels):,} images", found_text, held, f"{proof.tolerance:.0e}"))
    proof.checks.append(Check("top-1 agreement", f"{proof.top1_agreement:.2%}", whole.finite and not flips.any()))


def _check_file(file: Path, opset: int) -> tuple[str, bool]:
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file), load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    faults = [
        fault
        for fault, there in {
            f"opset {opsets.get('')} instead of {opset}": opsets.get("") != opset,
            f"operators of {', '.join(set(opsets) - {''})}": bool(set(opsets) - {""}),
            "weights in another file": any(
                t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer
            ),
            f"batch size fixed at {batch.dim_value}": not batch.dim_param,
            "BatchNorm not folded": any(node.op_type == "BatchNormalization" for node in model.graph.node),
        }.items()
        if there
    ]
    return "; ".join(faults) or f"opset {opset}, {len(model.graph.node)} nodes, any batch", not faults


def _check_nodes(session: runtime.Session) -> tuple[str, bool]:
    total, own = sum(session.nodes.values()), session.nodes.get(session.provider, 0)
    return f"{own} of {total} on {session.provider.removesuffix('ExecutionProvider')}", own == total > 0


def _check_classes(session: runtime.Session, checkpoint: Checkpoint) -> tuple[str, bool]:
    names = tuple(json.loads(session.metadata["class_names"]))
    return f"{len(names)} names", names == checkpoint.info.class_names
