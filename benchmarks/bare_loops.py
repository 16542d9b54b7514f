"""Training loops with nothing around them, on images that are on the device: what a GPU gives at most.

    python benchmarks/bare_loops.py resnet20 --batch-size 128 --side 32 --kinds eager,captured,compiled

Each prints its speed as a line of JSON as soon as it is known. All train the same network on images of noise in bf16,
channels_last, with fused SGD, and crop and mirror on the device: padded crops up to 64 pixels a side, beyond that
resized ones. A captured step is one CUDA graph, replayed for each batch; a compiled one has torch.compile's network,
and `both` is a captured step of it. `ceilings` are those of the device itself, `decoding` is JPEGs by threads alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_ops.data.decode import CropSpec, decode
from resnet_ops.machine import cores
from resnet_ops.models import build

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CLASSES, LR, MOMENTUM, WEIGHT_DECAY = 10, 0.1, 0.9, 1e-4
PADDED_UP_TO = 64  # pixels a side
STORED_SCALE = 256 / 224  # of the images that resized crops are from
WARM_UP_STEPS = 5
BURST = 20  # steps between two looks at the clock


@dataclass(frozen=True)
class Setup:
    """What is trained: `images` on the device, in batches."""

    model: str
    batch_size: int
    side: int
    images: int

    def network(self) -> nn.Module:
        """Return a fresh network on the device."""
        torch.manual_seed(0)
        return build(self.model, num_classes=CLASSES).to(DEVICE, memory_format=torch.channels_last).train()


class Loop:
    """A network, its optimizer and images; `step` trains on one batch."""

    def __init__(self, setup: Setup, forward: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
        self.setup = setup
        network = setup.network()
        self.forward = forward(network)
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
        )
        stored = setup.side if setup.side <= PADDED_UP_TO else round(setup.side * STORED_SCALE)
        self.pixels = torch.randint(0, 256, (setup.images, 3, stored, stored), dtype=torch.uint8, device=DEVICE)
        self.pixels = self.pixels.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, CLASSES, (setup.images,), device=DEVICE)
        self.order, self.position = torch.randperm(setup.images, device=DEVICE), 0

    def next_rows(self) -> Tensor:
        """Return the rows of the next batch."""
        n, start = self.setup.batch_size, self.position
        self.position = start + n if start + 2 * n <= self.setup.images else 0
        return self.order[start : start + n]

    def augment(self, rows: Tensor) -> Tensor:
        """Return images cropped at random, half of them mirrored, normalized."""
        side, n = self.setup.side, len(rows)
        x = self.pixels.index_select(0, rows)
        mirrored = torch.randint(0, 2, (n,), device=DEVICE, dtype=torch.bool)
        if side <= PADDED_UP_TO:
            x = F.pad(x, (side // 8,) * 4)
            top, left = torch.randint(0, side // 4 + 1, (2, n, 1), device=DEVICE)
            steps = torch.arange(side, device=DEVICE)
            columns = left + torch.where(mirrored[:, None], side - 1 - steps, steps)
            image = torch.arange(n, device=DEVICE)[:, None, None]
            x = x.permute(0, 2, 3, 1)[image, (top + steps)[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float()
        else:  # one gather of four pixels each, without antialiasing: cheaper than what resnet-ops does
            scale = torch.empty(n, device=DEVICE).uniform_(0.08, 1).sqrt()
            shift = torch.empty(2, n, device=DEVICE).uniform_(-1, 1) * (1 - scale)
            zero = torch.zeros_like(scale)
            across = torch.stack((torch.where(mirrored, -scale, scale), zero, shift[0]), 1)
            theta = torch.stack((across, torch.stack((zero, scale, shift[1]), 1)), 1)
            grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
            x = F.grid_sample(x.float(), grid, align_corners=False)
        return ((x - 121.0) / 64.0).contiguous(memory_format=torch.channels_last)

    def step(self, rows: Tensor) -> None:
        """Train on a batch."""
        x, y = self.augment(rows), self.labels.index_select(0, rows)
        # Capturing must not keep the casts of weights that autocast would keep.
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU, cache_enabled=False):
            logits = self.forward(x)
        F.cross_entropy(logits.float(), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def captured(self) -> Callable[[Tensor], None]:
        """Return the step as one graph that is replayed; where there is no GPU, the step itself."""
        rows = self.next_rows().clone()
        if not ON_GPU:
            self.step(rows)
            return self.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.step(rows)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(rows)

        def replay(next_rows: Tensor) -> None:
            rows.copy_(next_rows)
            graph.replay()

        return replay


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a network for one shape."""
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


KINDS: dict[str, tuple[Callable[[nn.Module], Callable[[Tensor], Tensor]], bool]] = {
    "eager": (lambda network: network, False),
    "captured": (lambda network: network, True),
    "compiled": (compiled, False),
    "both": (compiled, True),
}


def wait() -> float:
    """Wait until the device is done; return the time."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(kind: str, setup: Setup, seconds: float) -> float:
    """Return images/s of one kind of loop, after some steps."""
    forward, captures = KINDS[kind]
    loop = Loop(setup, forward)
    step = loop.captured() if captures else loop.step
    for _ in range(WARM_UP_STEPS):
        step(loop.next_rows())
    started, steps = wait(), 0
    while True:
        for _ in range(BURST if ON_GPU else 1):
            step(loop.next_rows())
        steps += BURST if ON_GPU else 1
        if (took := wait() - started) > seconds:
            return steps * setup.batch_size / took


def ceilings() -> dict[str, float]:
    """Return what the device does with one large matrix product, and with one large copy, as rates per second."""
    side, size = (8192, 2**32) if ON_GPU else (512, 2**24)
    a, b = torch.randn(2, side, side, device=DEVICE, dtype=torch.bfloat16 if ON_GPU else torch.float32)
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        work()
        started = wait()
        for _ in range(10):
            work()
        return (wait() - started) / 10

    return {
        "tflops": 2 * side**3 / seconds(lambda: a @ b) / 1e12,
        "copied_tb_s": 2 * size / seconds(lambda: target.copy_(source)) / 1e12,
    }


def per_image(model: str, side: int) -> dict[str, float]:
    """Return the floating-point operations and the bytes that training on one image takes, at the least.

    Three times those of the forward pass: the backward pass computes gradients of inputs and of weights. Bytes are
    those of the inputs and outputs of convolutions, BatchNorm and linear layers in bf16; all between may be fused.
    """
    found = {"flops": 0.0, "bytes": 0.0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["bytes"] += 3 * 2 * (inputs[0].numel() + output.numel())
        if isinstance(module, nn.Conv2d | nn.Linear):
            positions = output.numel() // output.shape[1]
            found["flops"] += 3 * 2 * positions * module.weight.numel()

    network = build(model, num_classes=CLASSES).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    return found


def decoding(folder: Path, side: int) -> float:
    """Return images/s of threads that read and decode a folder's JPEGs, one thread a core, and drop the pixels."""
    files = sorted(folder.rglob("*.jpg"))
    crop = CropSpec((side, side), side, side, 3)
    started = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        shapes = set(pool.map(lambda file: decode(file.read_bytes(), crop).shape, files))
    assert shapes == {crop.shape}
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--kinds", default="eager,captured,compiled,both")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, help="of JPEGs, for `decoding`")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    setup = Setup(options.model, options.batch_size, options.side, options.images)
    for kind in options.kinds.split(","):
        try:
            if kind == "ceilings":
                measured = ceilings()
            elif kind == "per image":
                measured = per_image(setup.model, setup.side)
            elif kind == "decoding":
                measured = {"images_per_second": decoding(options.folder, round(setup.side * STORED_SCALE))}
            else:
                measured = {"images_per_second": rate(kind, setup, options.seconds)}
            print(json.dumps({"kind": kind, **measured}), flush=True)
        except Exception as error:  # one kind that fails takes no other along
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            print(json.dumps({"kind": kind, "error": f"{type(error).__name__}: {reason}"}), flush=True)
        if ON_GPU:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
