"""Train residual networks on Ray, export them to ONNX, and verify the export.

    from resnet_ops import Classifier, TrainConfig, export_onnx, train

    result = train(TrainConfig(model="resnet8", epochs=2))
    exported = export_onnx(result.name)
    classifier = Classifier(exported.onnx)

Names are imported on first use: importing the package itself imports neither torch nor Ray nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_ops.config import DataConfig, TrainConfig
    from resnet_ops.data.audit import DataReport, check_data
    from resnet_ops.errors import UserError
    from resnet_ops.evaluation.config import EvaluateConfig
    from resnet_ops.evaluation.job import evaluate
    from resnet_ops.evaluation.results import EvaluateResult
    from resnet_ops.export.classifier import Classifier, PredictResult, predict
    from resnet_ops.export.config import ExportConfig, PredictConfig, ValidateConfig
    from resnet_ops.export.job import ExportResult, export_onnx
    from resnet_ops.export.proof_report import ValidationResult
    from resnet_ops.export.validate import validate_onnx as validate
    from resnet_ops.recipes.reading import configure
    from resnet_ops.training.job import TrainResult, train
    from resnet_ops.tuning.config import TuneConfig
    from resnet_ops.tuning.job import TuneResult, tune

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "DataConfig",
    "DataReport",
    "EvaluateConfig",
    "EvaluateResult",
    "ExportConfig",
    "ExportResult",
    "PredictConfig",
    "PredictResult",
    "TrainConfig",
    "TrainResult",
    "TuneConfig",
    "TuneResult",
    "UserError",
    "ValidateConfig",
    "ValidationResult",
    "check_data",
    "configure",
    "evaluate",
    "export_onnx",
    "predict",
    "train",
    "tune",
    "validate",
]

# The same at run time: the module of each name. `export` and `study` are packages, so no function bears these names.
_MODULES = {
    "Classifier": "export.classifier",
    "DataConfig": "config",
    "DataReport": "data.audit",
    "EvaluateConfig": "evaluation.config",
    "EvaluateResult": "evaluation.results",
    "ExportConfig": "export.config",
    "ExportResult": "export.job",
    "PredictConfig": "export.config",
    "PredictResult": "export.classifier",
    "TrainConfig": "config",
    "TrainResult": "training.job",
    "TuneConfig": "tuning.config",
    "TuneResult": "tuning.job",
    "UserError": "errors",
    "ValidateConfig": "export.config",
    "ValidationResult": "export.proof_report",
    "check_data": "data.audit",
    "configure": "recipes.reading",
    "evaluate": "evaluation.job",
    "export_onnx": "export.job",
    "predict": "export.classifier",
    "train": "training.job",
    "tune": "tuning.job",
    "validate": "export.validate:validate_onnx",
}
_SUBMODULES = ("config", "data", "errors", "export", "models", "orchestration", "runs", "training")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    globals()[name] = value = getattr(import_module(f"{__name__}.{module}"), attribute or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
