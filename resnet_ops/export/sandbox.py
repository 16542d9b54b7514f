"""Runs an ONNX file once, on the CPU, in a process of its own: `python -m resnet_ops.export.sandbox FILE`.

Exits with 1 and a line on stderr if it does not work; on a file that is made to, it may crash or never end.
"""

import resource
import sys

MEMORY_BYTES = 16 * 2**30


def main(path: str) -> None:
    """Load, run on black images, look at what comes out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise ValueError("it must have one input and one output")
    (given,) = session.get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    if given.type not in kinds or len(given.shape) != 4:
        raise ValueError(f"its input is {given.type} of {len(given.shape)} dimensions")
    raw = kinds[given.type] is np.uint8
    sides = [side if isinstance(side, int) else 40 for side in given.shape[1:]]
    if not all(0 < side <= 4096 for side in sides):
        raise ValueError(f"its image size is {sides}")
    images = 1 if isinstance(given.shape[0], int) and given.shape[0] == 1 else 2
    x = np.zeros((images, *sides), kinds[given.type])
    (found,) = session.run(None, {given.name: x})
    if found.ndim != 2 or found.shape[0] != images:
        raise ValueError(f"its output has shape {found.shape} for {images} {'raw ' if raw else ''}images")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # whatever ONNX Runtime raises
        sys.stderr.write(" ".join(str(error).split())[:500] + "\n")
        sys.exit(1)
