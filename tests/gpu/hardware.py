"""What these tests run on: a CUDA GPU, or the CPU, to rehearse them.

With RESNET_OPS_GPU_REHEARSAL=1 the same tests run on the CPU, so that only what CUDA itself does is left to a GPU.
"""

import os

import pytest
import torch

REHEARSAL = os.environ.get("RESNET_OPS_GPU_REHEARSAL") == "1"
ABSENT = "needs a CUDA GPU" if not (REHEARSAL or torch.cuda.is_available()) else ""
DEVICE = torch.device("cpu") if REHEARSAL else torch.device("cuda", 0)
PROVIDER = DEVICE.type  # of ONNX Runtime
CAPTURE = "auto" if REHEARSAL else "on"  # of --cuda-graph
cuda_itself = pytest.mark.skipif(REHEARSAL, reason="needs CUDA itself")
