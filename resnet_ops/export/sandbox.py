"""The program that runs an untrusted ONNX file once, on the CPU: `python -m resnet_ops.export.sandbox FILE`.

It exits with 1 and a line on stderr if that fails; on a malicious file it may crash or never end. `untrusted` calls it.
"""

import resource
import sys

MEMORY_BYTES = 16 * 2**30


def _limit(kind: int, most: int) -> None:
    """Lower a limit of this process; one that is lower already stays, as only root may raise it."""
    soft, hard = (most if limit == resource.RLIM_INFINITY else min(most, limit) for limit in resource.getrlimit(kind))
    resource.setrlimit(kind, (soft, hard))


def main(path: str) -> None:
    """Load the file, run it on black images and check the shape of its output."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ValueError("it must have one input and one output")
    (model_input,) = session.get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    if model_input.type not in kinds or len(model_input.shape) != 4:
        raise ValueError(f"its input is {model_input.type} of {len(model_input.shape)} dimensions")
    dtype = kinds[model_input.type]
    sides = [side if isinstance(side, int) else 40 for side in model_input.shape[1:]]
    if not all(0 < side <= 4096 for side in sides):
        raise ValueError(f"its image size is {sides}")
    images = 1 if model_input.shape[0] == 1 else 2
    x = np.zeros((images, *sides), dtype)
    (output,) = session.run(None, {model_input.name: x})
    if output.ndim != 2 or output.shape[0] != images:
        raw = "raw " if dtype is np.uint8 else ""
        raise ValueError(f"its output has shape {output.shape} for {images} {raw}images")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # whatever ONNX Runtime raises
        sys.stderr.write(" ".join(str(error).split())[:500] + "\n")
        sys.exit(1)
