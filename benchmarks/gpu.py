"""What one GPU shows in a few minutes: training beside bare loops, streaming, start-up, searches, exports, the paper.

    python benchmarks/gpu.py [--minutes 9] [--data FOLDER] [--results FOLDER] [--rehearse]

Most valuable first; each row is written into benchmarks/results/gpu-DEVICE.md and .json as soon as it is known, and
what does not fit into the minutes is left out. CIFAR-10 is read where --data or RESNET_OPS_CIFAR10 says; without it
speeds are measured on noise, and the paper's rows are left out. Needs neither a network nor root. --rehearse goes
through all of it on the CPU, with tiny networks, and leaves its figures in a temporary folder.
"""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import images
import numpy as np
import torch
from PIL import Image
from record import RESULTS, Row, machine, table

from resnet_ops.files import write_atomically
from resnet_ops.machine import cores, versions

LEAST_S = 10.0  # of the minutes given, below which nothing is begun
LIMIT_S = 120.0  # of any one command but the paper's trainings: one that hangs must not take all the minutes
OURS, EAGER = "resnet-ops train", "resnet-ops train --cuda-graph off"
BARE = {
    "eager": "bare loop",
    "captured": "bare loop, one CUDA graph",
    "compiled": "bare loop, compiled network",
    "both": "bare loop, compiled network in one CUDA graph",
}
ABOUT = """
One GPU. images/s of resnet-ops: whole commands, median of the epochs but the first. Bare loops
(`benchmarks/bare_loops.py`) train the same network on images that are on the device, with nothing around them. Shares:
of what a large copy moves and a large bf16 matmul computes on this device in the same minutes; training on an image
takes three times its forward pass, and convolutions, BatchNorm and linear layers read and write bf16 once.
"""


@dataclass(frozen=True)
class Speed:
    """A network whose training is measured, and the bare loops beside it."""

    model: str
    side: int
    batch_size: int
    images: int
    epochs: int
    kinds: str
    need_s: float  # that all of it takes on an H100
    eager: bool = False  # whether uncaptured steps are measured too

    @property
    def name(self) -> str:
        """Of the rows."""
        return f"{self.model}, {self.side}x{self.side}, batch {self.batch_size}"


SMALL_SIDE = 32
SPEEDS = (
    Speed("resnet20", 32, 128, 50_000, 8, "eager,captured,compiled,both", 75, eager=True),
    Speed("resnet50", 224, 256, 4096, 6, "eager,captured,compiled", 75),
    Speed("resnet20", 32, 1024, 50_000, 8, "eager,captured", 30),
    Speed("resnet56", 32, 128, 50_000, 5, "eager,captured", 40),
)
REHEARSED = (
    Speed("resnet8", 32, 32, 256, 3, "eager,captured", 75, eager=True),
    Speed("resnet18", 64, 8, 32, 2, "eager,captured", 75),
)


@dataclass
class Page:
    """The results so far, in sections, written again with each row."""

    name: str
    folder: Path
    record: dict[str, Any]
    sections: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, section: str, row: Row) -> None:
        """Add a row, and write all."""
        self.sections.setdefault(section, []).append(row)
        print(f"{section}: {', '.join(f'{head} {value}' for head, value in row.items() if head != 'said')}", flush=True)
        self.write()

    def note(self, text: str) -> None:
        """Add what could not be measured, and why, and write all."""
        self.notes.append(text)
        print(text, flush=True)
        self.write()

    def write(self) -> None:
        """Write both files atomically: a machine may be taken away at any moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.record | {"sections": self.sections, "notes": self.notes}
        write_atomically(self.folder / f"{self.name}.json", json.dumps(content, indent=2).encode() + b"\n")
        write_atomically(self.folder / f"{self.name}.md", ("\n".join(self._lines()) + "\n").encode())

    def _lines(self) -> Iterator[str]:
        yield f"# {self.record['device']}"
        yield ABOUT.rstrip()
        yield ""
        known = self.record["versions"]
        told = ", ".join(f"{name} {known[name]}" for name in ("torch", "ray", "onnxruntime-gpu") if name in known)
        yield f"{self.record['machine']}, driver {self.record['driver']}; {told}; {self.record['images']}."
        yield f"{self.record['date']}, `{self.record['command']}`."
        for section, rows in self.sections.items():
            yield from ("", f"## {section}", "", *table(rows))
        if self.notes:
            yield from ("", "## Left out", "", *(f"- {note}" for note in self.notes))


@dataclass
class Bench:
    """Runs commands, each a process of its own that is ended in time, and adds their rows to the page."""

    page: Page
    work: Path
    deadline: float
    rehearse: bool
    cifar10: Path | None
    bound: dict[str, float] = field(default_factory=dict)  # the device's ceilings
    started: list["Running"] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds left of the minutes given."""
        return self.deadline - time.time()

    @property
    def limit_s(self) -> float:
        """Seconds that a command may take."""
        return min(self.left_s, LIMIT_S)

    def fits(self, what: str, need_s: float) -> bool:
        """Return whether so many seconds are left; note it if not."""
        if self.left_s >= min(need_s, LEAST_S if self.rehearse else need_s):
            return True
        self.page.note(f"{what}: needs {need_s:.0f} s, {max(self.left_s, 0):.0f} s were left.")
        return False

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note what fails within a `with` block, and go on."""
        try:
            yield
        except CommandError as error:
            self.page.note(f"{what}: {error}")

    def start(self, *command: object) -> "Running":
        """Start a command outside of the checkout, where what is installed is what runs."""
        self.started.append(Running([*map(str, command)], self.work))
        return self.started[-1]

    def cli(self, *arguments: object) -> "Running":
        """Start a command of resnet-ops."""
        return self.start(sys.executable, "-m", "resnet_ops", *arguments, "--json")

    def train(self, name: str, *options: object) -> "Running":
        """Start `resnet-ops train`."""
        where = ("--device", "cpu", "--workers-per-node", 1) if self.rehearse else ("--device", "cuda")
        return self.cli("train", "--name", name, "--overwrite", "--runs-dir", self.work / "runs", *where, *options)

    def epochs(self, name: str) -> list[dict[str, float]]:
        """Return the metrics of a run's epochs."""
        lines = (self.work / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def rate(self, name: str) -> float:
        """Return the median of images/s of a run's epochs but the first."""
        return statistics.median(epoch["images_per_second"] for epoch in self.epochs(name)[1:])

    def bare(self, kinds: str, model: str, *options: object) -> Iterator[dict[str, Any]]:
        """Yield what each kind of bare loop prints, until it ends or is out of time."""
        script = Path(__file__).with_name("bare_loops.py")
        seconds = 0.5 if self.rehearse else 3
        running = self.start(sys.executable, script, model, "--kinds", kinds, "--seconds", seconds, *options)
        try:
            running.finish(self.limit_s)
        except CommandError as error:
            self.page.note(f"bare loops of {model}: {error}")
        yield from (json.loads(line) for line in running.out().splitlines() if line.startswith("{"))


class CommandError(Exception):
    """A command failed, or did not end in time."""


class Running:
    """A command that runs in a session of its own, its output in files."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.command, self.started = command, time.perf_counter()
        self.files = [Path(tempfile.mkstemp(dir=folder, suffix=suffix)[1]) for suffix in (".out", ".err")]
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, start_new_session=True)

    def finish(self, timeout_s: float) -> dict[str, Any]:
        """Wait for it to end; return what its last line says, and how long it took.

        Raises:
            CommandError: It failed, or did not end in time and was killed.
        """
        try:
            code = self.process.wait(max(timeout_s, 1))
        except subprocess.TimeoutExpired:
            raise CommandError(f"did not end in {timeout_s:.0f} s, and was killed") from None
        finally:
            self.seconds = time.perf_counter() - self.started
            self.end()
        if code:
            raise CommandError(f"ended with {code}: {(self.err().strip().splitlines() or ['it said nothing'])[-1]}")
        try:
            result: dict[str, Any] = json.loads(self.out().splitlines()[-1])
        except (IndexError, ValueError):
            return {}
        return result

    def end(self) -> None:
        """End what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def out(self) -> str:
        """Return its stdout so far."""
        return self.files[0].read_text()

    def err(self) -> str:
        """Return its stderr so far."""
        return self.files[1].read_text()

    def said(self) -> list[str]:
        """Return its warnings: what it says besides a line for each epoch."""
        return [line for line in self.err().splitlines() if not line.startswith("epoch ")][:20]


def small_images(bench: Bench, count: int) -> Path:
    """Return CIFAR-10's folder, or one of as much noise."""
    if bench.cifar10 is not None and not bench.rehearse:
        return bench.cifar10
    folder = bench.work / "noise"
    if not folder.is_dir():
        folder.mkdir()
        images.made_up(folder, SMALL_SIDE, count, max(count // 50, 10))
    return folder


def photographs(bench: Bench, count: int) -> Path:
    """Make JPEGs of ImageNet's usual size on all cores; return their folder."""
    folder = bench.work / "photographs"
    parts = {"train": count, "val": max(count // 32, images.CLASSES)}
    for split in () if folder.is_dir() else parts:
        for label in range(images.CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
        with ThreadPoolExecutor(cores()) as pool:
            files = [folder / split / str(row % images.CLASSES) / f"{row}.jpg" for row in range(parts[split])]
            list(pool.map(write_photograph, files, range(len(files))))
    return folder


def write_photograph(file: Path, seed: int) -> None:
    """Write shapes and some detail, 500x375, about 80 KB."""
    random, size = np.random.default_rng([seed, "train" in file.parts]), (500, 375)
    layers = []
    for side in (6, 160):
        coarse = random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        layers.append(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    encoded = io.BytesIO()
    Image.blend(*layers, 0.2).save(encoded, "JPEG", quality=90)
    file.write_bytes(encoded.getvalue())


def ceilings(bench: Bench) -> None:
    """What the device does at most."""
    for found in bench.bare("ceilings", "resnet8"):
        bench.bound = {name: value for name, value in found.items() if isinstance(value, float)}
        bench.page.add("Ceilings", {"bf16 matmul, TFLOP/s": found["tflops"], "copy, TB/s": found["copied_tb_s"]})


def speed(bench: Bench, setup: Speed) -> None:
    """Training from memory, beside bare loops."""
    if not bench.fits(setup.name, setup.need_s):
        return
    if setup.side == SMALL_SIDE:
        data, options = small_images(bench, setup.images), []
    else:
        data, options = photographs(bench, setup.images), ["--image-size", setup.side, "--random-resized-crop"]
    options += ["--data", data, "--model", setup.model, "--batch-size", setup.batch_size, "--epochs", setup.epochs]
    size = ("--side", setup.side, "--batch-size", setup.batch_size, "--images", setup.images)
    (costs,) = list(bench.bare("per image", setup.model, *size)) or [{}]
    found: dict[str, float] = {}

    def add(name: str, rate: float, said: list[str]) -> None:
        found[name] = rate
        row: Row = {"network": setup.name, "": name, "images/s": rate, "of the best bare loop": None}
        best = max((rate for one, rate in found.items() if one in BARE.values()), default=None)
        row["of the best bare loop"] = None if best is None or name in BARE.values() else rate / best
        row["share of copy bandwidth"] = share(rate * costs.get("bytes", 0), bench.bound.get("copied_tb_s"))
        row["share of matmul peak"] = share(rate * costs.get("flops", 0), bench.bound.get("tflops"))
        bench.page.add("Training", row | {"said": said})

    for one in bench.bare(setup.kinds, setup.model, *size):
        if "error" in one:
            bench.page.note(f"{setup.name}, {BARE[one['kind']]}: {one['error']}")
        else:
            add(BARE[one["kind"]], one["images_per_second"], [])
    for name, more in ((OURS, ()), (EAGER, ("--cuda-graph", "off")))[: 2 if setup.eager else 1]:
        with bench.attempt(f"{setup.name}, {name}"):
            running = bench.train(run_name(setup), *options, *more)
            running.finish(bench.limit_s)
            add(name, bench.rate(run_name(setup)), running.said())


def run_name(setup: Speed) -> str:
    """Return the name of the run that a setup leaves."""
    return f"{setup.model}-{setup.batch_size}"


def share(used: float, of_tera: float | None) -> float | None:
    """Return a rate as a share of a ceiling."""
    return used / (of_tera * 1e12) if of_tera and used else None


def streaming(bench: Bench, setup: Speed) -> None:
    """JPEGs decoded while the network trains, beside threads that only decode."""
    if not bench.fits("streaming", 35):
        return
    folder = photographs(bench, setup.images)
    for found in bench.bare("decoding", setup.model, "--folder", folder / "train", "--side", setup.side):
        if "error" in found:
            bench.page.note(f"decoding: {found['error']}")
            continue
        bare = found["images_per_second"]
        bench.page.add("Streaming", {"": "bare threads that decode", "images/s": bare, "ratio": None})
        with bench.attempt("streaming"):
            running = bench.train(
                "streamed", "--data", folder, "--stream", "on", "--image-size", setup.side, "--random-resized-crop",
                "--model", setup.model, "--batch-size", setup.batch_size, "--epochs", setup.epochs,
            )  # fmt: skip
            running.finish(bench.limit_s)
            rate = bench.rate("streamed")
            name = f"{OURS} --stream on, {setup.name}, {cores()} cores"
            bench.page.add("Streaming", {"": name, "images/s": rate, "ratio": rate / bare, "said": running.said()})


def determinism(bench: Bench, setup: Speed) -> None:
    """The cost of --deterministic."""
    plain = [row for row in bench.page.sections.get("Training", []) if (row["network"], row[""]) == (setup.name, OURS)]
    if not bench.fits("determinism", 20):
        return
    with bench.attempt("determinism"):
        running = bench.train(
            "deterministic", "--data", small_images(bench, setup.images), "--model", setup.model, "--batch-size",
            setup.batch_size, "--epochs", setup.epochs, "--deterministic",
        )  # fmt: skip
        running.finish(bench.limit_s)
        rate = bench.rate("deterministic")
        ratio = rate / plain[0]["images/s"] if plain else None
        row: Row = {"network": setup.name, "": f"{OURS} --deterministic", "images/s": rate, "ratio": ratio}
        bench.page.add("Determinism", row | {"said": running.said()})


def start_up(bench: Bench) -> None:
    """Seconds from the shell to the first step, beside importing torch."""
    if not bench.fits("start-up", 30):
        return
    with bench.attempt("start-up"):
        code = f"import torch; torch.zeros(1, device={'cpu' if bench.rehearse else 'cuda'!r})"
        imported = bench.start(sys.executable, "-c", code)
        imported.finish(bench.limit_s)
        bench.page.add("Start-up", {"": "import torch, and use the device", "s": imported.seconds})
        epochs = 2 if bench.rehearse else 30
        for name, more in (("--cuda-graph off", ("--cuda-graph", "off")), ("captured", ())):
            running = bench.train("first", "--epochs", epochs, *more)
            result = running.finish(bench.limit_s)
            first = result["time_to_first_step_s"]
            bench.page.add("Start-up", {"": f"shell to first step, ResNet-20 on digits, {name}", "s": first})
            bench.page.add("Start-up", {"": f"the whole command of {epochs} epochs, {name}", "s": running.seconds})


def searches(bench: Bench) -> None:
    """12 trials on one GPU, several at once and one at a time."""
    size = ("--trials", 2, "--epochs", 2, "--depths", 8, "--device", "cpu") if bench.rehearse else ("--trials", 12)
    for name, more, need_s in (("several at once", (), 30), ("one at a time", ("--max-concurrent", 1), 60)):
        if not bench.fits(f"a search, {name}", need_s):
            return
        with bench.attempt(f"a search, {name}"):
            running = bench.cli("tune", "--name", "search", "--runs-dir", bench.work / name.split()[0], *size, *more)
            result = running.finish(bench.limit_s)
            row: Row = {"": f"{len(result['trials'])} trials on digits, {name}", "s": running.seconds}
            bench.page.add("Search", row | {"accuracy": result["best"]["val_accuracy"], "said": running.said()})


def exports(bench: Bench, setup: Speed) -> None:
    """Each precision, proven and measured where it runs."""
    provider, run = "cpu" if bench.rehearse else "cuda", "first"  # of start_up
    if bench.cifar10 is not None and not bench.rehearse:  # noise has no classes that could be told apart
        run = run_name(setup)
    for precision, where, need_s in (("fp16", provider, 60), ("fp32", provider, 90), ("int8", "cpu", 40)):
        if not bench.fits(f"export, {precision}", need_s):
            continue
        with bench.attempt(f"export, {precision}"):
            file = bench.work / f"{precision}.onnx"
            exported = bench.cli(
                "export", bench.work / "runs" / run, "--onnx", "--precision", precision, "--provider", where,
                "--out", file, "--images", 1000 if not bench.rehearse else 20,
            ).finish(bench.limit_s)  # fmt: skip
            proof: Row = {
                "precision": precision,
                "provider": exported["provider"],
                "proven": str(exported["validated"]),
                "largest difference": f"{exported['max_rel_diff']:.1e}",
                "same top class": exported["top1_agreement"],
                "s": exported["total_s"],
            }
            bench.page.add("Exports", proof)
            measured = bench.cli(
                "bench", file, "--provider", where, "--batch", 8 if bench.rehearse else "1,64", "--seconds", 0.3,
                "--no-compile",
            ).finish(bench.limit_s)  # fmt: skip
            for one in measured["rows"]:
                speed_row: Row = {
                    "file": f"ResNet-20 of {'CIFAR-10' if run != 'first' else 'digits'}, {precision}",
                    "": one["name"],
                    "batch": one["batch"],
                    "images/s": one.get("images_per_second"),
                    "p50, ms": one.get("p50_ms"),
                    "error": one.get("error"),
                }
                bench.page.add("Inference", speed_row)


def papers_rows(bench: Bench) -> None:
    """Test errors on CIFAR-10 as in the paper, of the last epoch, trained on all 50,000 images; as time allows."""
    if bench.cifar10 is None:
        bench.page.note("The paper's rows: CIFAR-10 is not there; name its folder with --data or RESNET_OPS_CIFAR10.")
        return
    rows = bench.page.sections.get("Training", [])
    fastest = max((row["images/s"] for row in rows if row[""] == OURS and "20," in row["network"]), default=30_000)
    short = ("--epochs", 1, "--model", "resnet8") if bench.rehearse else ()
    for recipe, epochs, groups in (
        ("fast", 32, ([("resnet20", 0)], [("resnet20", 1), ("resnet20", 2)])),
        ("paper", 164, ([("resnet20", 0), ("plain20", 0)],)),
    ):
        for group in groups:
            side_by_side = 1 if len(group) == 1 else 1.6  # how much longer they take
            need_s = 20 + side_by_side * epochs * 50_000 / fastest
            what = f"{recipe}, {', '.join(f'{model} seed {seed}' for model, seed in group)}"
            if not bench.fits(what, need_s):
                continue
            trainings = [
                bench.train(
                    f"{recipe}-{model}-{seed}", "--recipe", recipe, "--model", model, "--seed", seed, "--data",
                    bench.cifar10, "--val-data", "test", *short,
                )
                for model, seed in group
            ]  # fmt: skip
            for (model, seed), running in zip(group, trainings, strict=True):
                with bench.attempt(f"{recipe}, {model}, seed {seed}"):
                    result = running.finish(bench.left_s)
                    row: Row = {
                        "recipe": recipe,
                        "network": result["model"],
                        "seed": seed,
                        "test error, %": round(100 * (1 - result["best"]["last_val_accuracy"]), 2),
                        "side by side": len(group),
                        "s": running.seconds,
                        "images/s": result["images_per_second"],
                    }
                    bench.page.add("The paper", row | {"said": running.said()})


def measure(bench: Bench) -> None:
    """Measure all, the most valuable first."""
    small, large, *others = REHEARSED if bench.rehearse else SPEEDS
    ceilings(bench)
    for setup in (small, large, *others):
        speed(bench, setup)
    streaming(bench, large)
    determinism(bench, small)
    start_up(bench)
    searches(bench)
    exports(bench, small)
    papers_rows(bench)


def driver() -> str:
    """Return the version of the NVIDIA driver, or a dash."""
    with contextlib.suppress(OSError):
        question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        answer = subprocess.run(question, capture_output=True, text=True, check=False, timeout=20)
        return answer.stdout.strip() or "-"
    return "-"


def main() -> None:
    """Measure in order of value until the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__)
    images.add_option(parser)
    parser.add_argument("--minutes", type=float, default=9.0, help="that it may take")
    parser.add_argument("--began", type=float, default=time.time(), help="when they began, in seconds since 1970")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of both files")
    parser.add_argument("--rehearse", action="store_true", help="go through all of it on the CPU, on a small scale")
    options = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was started, too
    if not (options.rehearse or torch.cuda.is_available()):
        raise SystemExit("error: There is no CUDA GPU here. Rehearse on the CPU with --rehearse.")
    device = "rehearsal" if options.rehearse else torch.cuda.get_device_name()
    cifar10 = (
        Path(options.data).absolute() if options.data and list(Path(options.data).glob("train-*.parquet")) else None
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["RESNET_OPS_CACHE"] = str(Path(folder) / "cache")
        record = {
            "device": device,
            "driver": driver(),
            "machine": machine(),
            "versions": versions(),
            "images": "CIFAR-10" if cifar10 else "images of noise",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": f"python benchmarks/gpu.py --minutes {options.minutes:g}",
        }
        name = f"gpu-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}"
        results = Path(tempfile.mkdtemp(prefix="resnet-ops-")) if options.rehearse else options.results
        page = Page(name, results.absolute(), record)
        bench = Bench(page, Path(folder), options.began + 60 * options.minutes, options.rehearse, cifar10)
        try:
            measure(bench)
        finally:
            for running in bench.started:
                if running.process.poll() is None:
                    running.end()
        print(f"\n{(page.folder / name).with_suffix('.md')}", flush=True)


if __name__ == "__main__":
    main()
