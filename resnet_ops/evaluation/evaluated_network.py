"""The network to evaluate: of a run, of a file of weights, or an exported file in ONNX Runtime.

Which images it is evaluated on is decided in labeled_images.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor

from resnet_ops.config_base import quoted
from resnet_ops.data.augment import normalize
from resnet_ops.data.decode import CropSpec
from resnet_ops.errors import UserError
from resnet_ops.evaluation.config import EvaluateConfig
from resnet_ops.export import claimed_network, graph, inputs, runtime, snapshot, untrusted
from resnet_ops.export.calibration import scale_head
from resnet_ops.export.checks import check_graph, summarize
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.config import ExportConfig, Provider, WeightsFileConfig
from resnet_ops.export.metadata import Calibration, ModelMetadata, Preprocessing
from resnet_ops.export.metadata_checks import calibration_fingerprint, differences_from_checkpoint
from resnet_ops.export.proof_report import ProofDraft
from resnet_ops.export.snapshot import Snapshot
from resnet_ops.export.white_box import WhiteBox
from resnet_ops.runs import Run
from resnet_ops.training.checkpoint import Checkpoint, CheckpointInfo, best_file, best_sha256

Kind = Literal["run", "checkpoint", "weights", "onnx"]
Outputs = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network that can be run, and what is known of its training.

    Args:
        kind: Where it is from; 'run' for the selected weights of a run.
        file: The checkpoint, the file of weights, or the ONNX file.
        sha256: The checksum of the checkpoint that it is, or was exported from.
        model: Its architecture, such as resnet20.
        class_names: Its classes, in their order.
        crop: How images are decoded for it.
        precision: fp32, fp16 or int8.
        device: cpu or cuda, or ONNX Runtime's execution provider.
        described: What its checkpoint says of it and its training, or, without one, the file's metadata.
        run: The run that it belongs to.
        log_probabilities: Returns those of the classes, (n, classes) float64 on the CPU, of pixels (n, H, W, C) uint8.
        is_confirmed: Whether it is known to have the weights of the checkpoint that says what is known of its training.
        calibration: How the temperature of an exported file was fitted.
        fitted_on: The fingerprint of the images that it was fitted on; "" without one.
    """

    kind: Kind
    file: Path
    sha256: str
    model: str
    class_names: tuple[str, ...]
    crop: CropSpec
    precision: str
    device: str
    described: CheckpointInfo | ModelMetadata
    run: Run | None
    log_probabilities: Outputs
    is_confirmed: bool = True
    calibration: Calibration | None = None
    fitted_on: str = ""

    @property
    def name(self) -> str:
        """Return what to call it: the run, the checkpoint of a run, or the file."""
        if self.kind == "run" and self.run is not None:
            return self.run.name
        return f"{self.run.name}/{self.file.name}" if self.run is not None else self.file.name


def open_network(config: EvaluateConfig, warn: inputs.Warn) -> EvaluatedNetwork:
    """Load the network that `config` names.

    Raises:
        UserError: There is no such run or file, it has no intact weights, or it cannot be run here.
    """
    return _open_exported(config, warn) if config.is_onnx else _open_weights(config, warn)


def _open_weights(config: EvaluateConfig, warn: inputs.Warn) -> EvaluatedNetwork:
    described = {name: getattr(config, name) for name in WeightsFileConfig.model_fields}
    resolved = inputs.resolve_checkpoint(ExportConfig(run=config.run, runs_dir=config.runs_dir, **described), warn)
    checkpoint, run = resolved.checkpoint, resolved.run
    kind: Kind = "checkpoint" if checkpoint.info.metrics else "weights"
    if run is not None and run.read_as_written().best:
        # Most are read from there: the file is read again for copies and other checkpoints only.
        is_best = checkpoint.path == best_file(run) or checkpoint.sha256 == best_sha256(run)
        kind = "run" if is_best else kind
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    info = checkpoint.info
    return EvaluatedNetwork(
        kind,
        checkpoint.path,
        checkpoint.sha256,
        info.model,
        info.class_names,
        Preprocessing.of(info, "normalized").crop,
        "fp32",
        device.type,
        info,
        run,
        _torch_outputs(checkpoint, device),
    )


def _torch_outputs(checkpoint: Checkpoint, device: torch.device) -> Outputs:
    info = checkpoint.info
    network = info.build_network()
    network.load_state_dict(checkpoint.model)
    network.eval().to(device)

    def log_probabilities(pixels: np.ndarray) -> Tensor:
        with torch.inference_mode():
            x = normalize(torch.from_numpy(pixels).to(device), info.mean, info.std)
            logits: Tensor = network(x)
            return logits.double().log_softmax(1).cpu()

    return log_probabilities


def _open_exported(config: EvaluateConfig, warn: inputs.Warn) -> EvaluatedNetwork:
    with snapshot.take(Path(config.run).expanduser(), config.provider) as taken:
        network = _of_snapshot(taken, config.provider, warn)
        taken.check_unchanged()
    return network


def _of_snapshot(taken: Snapshot, provider: Provider, warn: inputs.Warn) -> EvaluatedNetwork:
    """Load the copy of an exported file, and compare it with what it says of itself, and with its checkpoint.

    Raises:
        UserError: It is not what it says.
    """
    file = taken.original
    written, metadata = untrusted.scan(taken.file)
    session = runtime.create_session(taken.file, runtime.resolve_provider(provider, metadata.precision))
    classifier = Classifier.from_session(metadata, session)
    draft = ProofDraft(provider=runtime.CPU)
    draft.run("file", lambda: check_graph(taken.file, written, metadata, None, None))
    if not draft.validated:
        raise UserError(
            f"{file} is not what its metadata says: {draft.checks[-1].result}.",
            f"See all that differs: resnet-ops validate {quoted(file)}",
        )
    claimed_network.check_layers(file, written, metadata)
    resolved = inputs.find_exported_checkpoint(file, metadata.checkpoint_sha256)
    is_confirmed = False
    if resolved is None:
        warn("Its checkpoint was not found: what its training has seen is known from its metadata only.")
    else:
        differences, same = summarize(differences_from_checkpoint(metadata, resolved.checkpoint), "")
        if not same:
            raise UserError(
                f"{file} says of its network what its checkpoint does not: {differences}.",
                f"See all that differs: resnet-ops validate {quoted(file)}",
            )
        is_confirmed = _has_weights_of(resolved.checkpoint, taken, written, warn)
    trained = resolved.checkpoint.info if resolved else metadata

    def log_probabilities(pixels: np.ndarray) -> Tensor:
        outputs = torch.from_numpy(classifier.run(pixels)).double()
        return (outputs.log() if metadata.output == "probabilities" else outputs).log_softmax(1)

    return EvaluatedNetwork(
        "onnx",
        file.absolute(),
        metadata.checkpoint_sha256,
        trained.model,
        trained.class_names,
        classifier.crop,
        metadata.precision,
        session.provider,
        trained,
        resolved.run if resolved else None,
        log_probabilities,
        is_confirmed=is_confirmed,
        calibration=metadata.calibration,
        fitted_on=calibration_fingerprint(metadata) if metadata.calibration else "",
    )


def _has_weights_of(checkpoint: Checkpoint, taken: Snapshot, written: onnx.ModelProto, warn: inputs.Warn) -> bool:
    """Return whether a file is known to have the weights of a checkpoint: they are found where its graph is known.

    Raises:
        UserError: It has others.
    """
    model = untrusted.with_weights(taken.file, graph.with_inferred_shapes(written))
    box = WhiteBox(model, taken.metadata, scale_head(checkpoint, taken.metadata.calibration))
    draft = ProofDraft(provider=runtime.CPU)
    draft.run("structure", box.check_structure)
    if not draft.validated:
        warn(f"That it has the weights of its checkpoint is known from its metadata only: {draft.checks[-1].result}.")
        return False
    draft.run("weights", box.check_weights)
    if not draft.validated:
        raise UserError(
            f"{taken.original} does not have the weights of {checkpoint.path.name}, its checkpoint: "
            f"{draft.checks[-1].result}.",
            f"See all that differs: resnet-ops validate {quoted(taken.original)}",
        )
    return True
