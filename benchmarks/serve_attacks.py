"""A service under attack: what well-behaved clients still get, beside uvicorn with a minimal app of the same network.

    python benchmarks/serve_attacks.py [--runs 3] [--seconds 10]

Both serve one file on this machine at the same time, and are attacked in turn. Writes
benchmarks/results/serve_attacks.md and .json.
"""

import argparse
import asyncio
import contextlib
import io
import json
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image
from record import Floor, Row, in_turn, write

OURS, PEER = "resnet-ops serve", "uvicorn, minimal app"
CLIENTS, PATIENCE_S, WARM_UP_S = 64, 5.0, 3.0
ABOUT = f"""
ResNet-20 on the CPU, photos of 256x256 in JPEG; {CLIENTS} clients that each wait for an answer before they ask again,
for {{seconds:.0f}} s, while an attack goes on that began {WARM_UP_S:.0f} s earlier. Server, clients and attackers share
the machine and its cores, and all come from one address. An attacker whose connection is closed opens another one.

- slow uploads: 300 uploads of 1 byte a second
- slow heads: 300 requests whose head arrives at 1 byte a second
- idle: 1,000 connections that ask once and stay
- bombs: 24 connections that send PNG files of 49 and of 3,600 megapixels, and bodies of 9.9 and of 50 MB
- unread answers: 200 connections that ask for pages and never read them

`rejected`: answers of 503; `lost`: no answer within {PATIENCE_S:.0f} s, or a closed connection; `health`: the longest
that `/health` took on a new connection, asked each 0.25 s, {PATIENCE_S:.0f} s if it did not answer.
"""
PEER_APP = """
import io, sys
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(taken,) = session.get_inputs()
app = FastAPI()

def predict(body):
    image = Image.open(io.BytesIO(body)).convert("L" if taken.shape[1] == 1 else "RGB")
    pixels = np.asarray(image.resize(taken.shape[:1:-1]), np.float32) / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return session.run(None, {taken.name: pixels[None]})[0][0].tolist()

@app.post("/classify")
async def classify(request: Request):
    return {"logits": await run_in_threadpool(predict, await request.body())}

@app.get("/health")
async def health():
    return {"status": "ok"}

uvicorn.run(app, port=int(sys.argv[2]), access_log=False, log_level="critical")
"""


# Attacks: each is a connection's life, begun anew when it ends.


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def _drip(port: int, start: bytes, rest: bytes) -> None:
    reader, writer = await _connect(port)
    gone = asyncio.create_task(reader.read())
    writer.write(start)
    for byte in cycle(rest):
        await asyncio.sleep(1)
        if gone.done():
            break
        writer.write(bytes([byte]))
    writer.close()


async def slow_upload(port: int, _: int) -> None:
    """Send the head of a request, and its body at 1 byte a second."""
    await _drip(port, b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n", b"x")


async def slow_head(port: int, _: int) -> None:
    """Send the head of a request at 1 byte a second."""
    await _drip(port, b"POST /classify HTTP/1.1\r\nHost: x\r\n", b"X-Header: y\r\n")


async def idle(port: int, _: int) -> None:
    """Ask once, and keep the connection."""
    reader, writer = await _connect(port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read()
    writer.close()


async def bomb(port: int, index: int) -> None:
    """Send what is expensive to receive or to decode."""
    body = BOMBS[index % len(BOMBS)]
    reader, writer = await _connect(port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await reader.read()
    writer.close()


async def unread(port: int, _: int) -> None:
    """Ask for pages, and read none."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", port)) as sending:
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sending.setblocking(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                while True:
                    await loop.sock_sendall(sending, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50)


def _png(side: int) -> bytes:
    """Return a PNG of so many black pixels squared; beyond 10,000 only its head says so."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(bytes((side + 1) * side if side < 10_000 else 100), 9)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMBS = [_png(7000), _png(60_000), b"x" * 9_900_000, b"x" * 50_000_000]
Attack = Callable[[int, int], Awaitable[None]]
ATTACKS: dict[str, tuple[int, Attack]] = {
    "none": (0, idle),
    "slow uploads": (300, slow_upload),
    "slow heads": (300, slow_head),
    "idle": (1000, idle),
    "bombs": (24, bomb),
    "unread answers": (200, unread),
}


async def attack(name: str, port: int) -> None:
    """Attack until killed."""
    count, connection = ATTACKS[name]

    async def again(index: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                await connection(port, index)
            await asyncio.sleep(0.1)

    await asyncio.gather(*[again(index) for index in range(count)], asyncio.sleep(3600))


# Well-behaved clients.


async def ask(port: int, request: bytes, kept: list[asyncio.StreamWriter | asyncio.StreamReader]) -> int:
    """Return the status of an answer, on a kept connection if there is one."""
    if not kept:
        kept[:] = await _connect(port)
    reader, writer = kept
    assert isinstance(reader, asyncio.StreamReader)
    assert isinstance(writer, asyncio.StreamWriter)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
    except BaseException:
        writer.close()
        kept.clear()
        raise
    if b"connection: close" in head.lower():
        writer.close()
        kept.clear()
    return int(head.split()[1])


async def well_behaved(port: int, image: bytes, seconds: float) -> Row:
    """Ask for `seconds` and return what came."""
    took: list[float] = []
    health: list[float] = []
    counts = {"rejected": 0, "lost": 0}
    end = time.monotonic() + seconds
    post = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image) + image

    async def client() -> None:
        kept: list[asyncio.StreamWriter | asyncio.StreamReader] = []
        while (start := time.monotonic()) < end:
            try:
                status = await asyncio.wait_for(ask(port, post, kept), PATIENCE_S)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                counts["lost"] += 1
                await asyncio.sleep(0.05)
                continue
            if status == 200:
                took.append(time.monotonic() - start)
            else:
                counts["rejected"] += 1
                await asyncio.sleep(0.05)

    async def prober() -> None:
        while (start := time.monotonic()) < end:
            try:
                request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                await asyncio.wait_for(ask(port, request, []), PATIENCE_S)
                health.append(time.monotonic() - start)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                health.append(PATIENCE_S)
            await asyncio.sleep(0.25)

    await asyncio.gather(prober(), *[client() for _ in range(CLIENTS)])
    p99 = float(np.quantile(took, 0.99)) if took else PATIENCE_S
    return {"requests/s": len(took) / seconds, "p99 ms": 1e3 * p99, **counts, "health ms": 1e3 * max(health)}


def under_attack(attack_name: str, port: int, photo: Path, seconds: float) -> Row:
    """Attack in one process and ask in another."""
    here = [sys.executable, __file__, "--port", str(port)]
    with subprocess.Popen([*here, "--attack", attack_name]) as attacker:
        try:
            time.sleep(WARM_UP_S)
            asked = subprocess.run(
                [*here, "--ask", str(photo), "--seconds", str(seconds)], stdout=subprocess.PIPE, check=True
            )
        finally:
            attacker.kill()
    time.sleep(1)
    row: Row = json.loads(asked.stdout)
    return row


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    """Run a server for the length of a `with` block."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
                time.sleep(0.2)
            yield
        finally:
            process.terminate()


def prepare(folder: Path) -> tuple[Path, Path]:
    """Train and export a network for an epoch; return its file and a photo."""
    from resnet_ops.config import TrainConfig
    from resnet_ops.export.config import ExportConfig
    from resnet_ops.export.job import export_onnx
    from resnet_ops.training import job

    job.train(TrainConfig.of(runs_dir=folder, name="served", model="resnet20", epochs=1))
    exported = export_onnx(ExportConfig.of(run="served", runs_dir=folder, input="normalized"))
    photo = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((256, 256)).save(photo, "JPEG")
    (folder / "photo.jpg").write_bytes(photo.getvalue())
    return Path(str(exported.onnx)), folder / "photo.jpg"


def main(runs: int, seconds: float) -> None:
    """Measure and write the table."""
    from resnet_ops.machine import cores

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file, photo = prepare(folder)
        (folder / "peer.py").write_text(PEER_APP)
        ports = {OURS: 18231, PEER: 18232}
        ours = [str(Path(sys.executable).with_name("resnet-ops")), "serve", str(file), "--port", str(ports[OURS])]
        peer = [sys.executable, str(folder / "peer.py"), str(file), str(ports[PEER]), str(cores())]
        with served(ours, ports[OURS]), served(peer, ports[PEER]):
            found = in_turn(
                {
                    f"{name}|{server}": partial(under_attack, name, port, photo, seconds)
                    for name in ATTACKS
                    for server, port in ports.items()
                },
                runs,
            )
    rows: list[Row] = []
    for key, samples in found.items():
        name, _, server = key.partition("|")
        medians = {head: statistics.median(sample[head] for sample in samples) for head in samples[0]}
        rows.append({"attack": name, "server": server, **medians, "samples": samples})
    ours_by_attack = {row["attack"]: row for row in rows if row["server"] == OURS}
    quiet, quiet_peer = (next(row for row in rows if row["server"] == server) for server in (OURS, PEER))
    floors = [
        Floor("requests/s beside the minimal app, not attacked", 1.0, quiet["requests/s"] / quiet_peer["requests/s"]),
        Floor("300 ms beside the 99th percentile of latency, not attacked", 1.0, 300 / quiet["p99 ms"]),
        *(
            Floor(f"requests/s under {name} beside none", 0.5, row["requests/s"] / quiet["requests/s"])
            for name, row in ours_by_attack.items()
            if name != "none"
        ),
    ]
    write(
        "serve_attacks",
        "A service under attack",
        ABOUT.format(seconds=seconds),
        rows,
        floors,
        runs,
        "uvicorn",
        "fastapi",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--port", type=int)
    parser.add_argument("--attack")
    parser.add_argument("--ask")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard > 0 else 4096, hard))
    if options.attack:
        asyncio.run(attack(options.attack, options.port))
    elif options.ask:
        print(json.dumps(asyncio.run(well_behaved(options.port, Path(options.ask).read_bytes(), options.seconds))))
    else:
        main(options.runs, options.seconds)
