"""onnxruntime-web in a real browser: models and inputs are served to a page, which sends the outputs back."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reporting.reading import BROWSER

ONNXRUNTIME_WEB = Path(sys.prefix, "node_modules", "onnxruntime-web", "dist")
needs_onnxruntime_web = pytest.mark.skipif(
    BROWSER is None or not ONNXRUNTIME_WEB.is_dir(),
    reason=f"there is no Chromium or Chrome, or no onnxruntime-web: npm install --prefix {sys.prefix} onnxruntime-web",
)
TIMEOUT_S = 120
PAGE = """<!doctype html><script type="module">
import * as ort from "/ort/ort.wasm.bundle.min.mjs";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = "/ort/";
const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
const outputs = {};
try {
  for (const [model, inputs] of Object.entries(await (await fetch("/cases.json")).json())) {
    const session = await ort.InferenceSession.create(await bytes(model), {executionProviders: ["wasm"]});
    outputs[model] = [];
    for (const {file, type, dims} of inputs) {
      const data = await bytes(file);
      const tensor = new ort.Tensor(type, type === "uint8" ? data : new Float32Array(data.buffer), dims);
      const {logits} = await session.run({images: tensor});
      outputs[model].push({data: Array.from(logits.data), dims: logits.dims});
    }
  }
} catch (error) { outputs.error = String(error); }
await fetch("/outputs", {method: "POST", body: JSON.stringify(outputs)});
</script>"""


class _Handler(SimpleHTTPRequestHandler):
    """Serve files of memory and of onnxruntime-web, and keep what is posted."""

    def __init__(self, *arguments: Any, files: Mapping[str, bytes], outputs: dict[str, Any], done: threading.Event):
        self.files, self.outputs, self.done = files, outputs, done
        super().__init__(*arguments, directory=str(ONNXRUNTIME_WEB.parent))

    def do_GET(self) -> None:
        content = self.files.get(self.path.lstrip("/"))
        if content is None:
            self.path = self.path.replace("/ort/", "/dist/")
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(self.path) if Path(self.path).suffix else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.outputs.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *arguments: object) -> None:
        pass


def run_in_browser(cases: Mapping[Path, Sequence[np.ndarray]]) -> dict[Path, list[np.ndarray]]:
    """Return the outputs of each model for each of its inputs."""
    files, listed = {"": PAGE.encode()}, dict[str, list[dict[str, Any]]]()
    for model, inputs in cases.items():
        files[model.name] = model.read_bytes()
        listed[model.name] = []
        for number, x in enumerate(inputs):
            files[f"{model.name}.{number}"] = np.ascontiguousarray(x).tobytes()
            listed[model.name].append({"file": f"{model.name}.{number}", "type": x.dtype.name, "dims": x.shape})
    files["cases.json"] = json.dumps(listed).encode()
    outputs = open_page(files)
    return {
        model: [np.array(one["data"], np.float32).reshape(one["dims"]) for one in outputs[model.name]]
        for model in cases
    }


def open_page(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Open the page named "" among these files, which has onnxruntime-web in `ort/`, and return what it posts."""
    assert BROWSER is not None
    outputs, done = dict[str, Any](), threading.Event()
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files=files, outputs=outputs, done=done)) as server,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--disable-dev-shm-usage",
        ]
        browser = subprocess.Popen(
            [BROWSER, *options, f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert done.wait(TIMEOUT_S), "the page sent nothing"
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert "error" not in outputs, outputs["error"]
    return outputs
