"""`resnet-ops serve`: an exported file as a service."""

from pathlib import Path
from typing import Annotated, Any

from resnet_ops.errors import INTERRUPTED, UserError
from resnet_ops.formatting import percent
from resnet_ops.serving.config import ServeConfig

from .clock import importing
from .console import Output, err
from .options import Debug, Json, argument, option

EXAMPLES = """
[bold]resnet-ops serve model.onnx[/]  on this machine, for this machine

[bold]curl --data-binary @photo.jpg 'http://127.0.0.1:8000/classify?top=5'[/]  ask it

[bold]resnet-ops serve model.onnx --host 0.0.0.0 --replicas 2 --provider cuda[/]  for others, on two GPUs
"""
default = ServeConfig.default
LISTENING, LIMITS, PLACE = "Where it listens", "What it takes", "Where it runs"


def _option(name: str, panel: str) -> Any:
    return option(ServeConfig, name, panel)


def serve(
    file: Annotated[Path, argument(ServeConfig, "file")],
    host: Annotated[str, _option("host", LISTENING)] = default("host"),
    port: Annotated[int, _option("port", LISTENING)] = default("port"),
    batch: Annotated[int, _option("batch", LIMITS)] = default("batch"),
    batch_wait_ms: Annotated[float, _option("batch_wait_ms", LIMITS)] = default("batch_wait_ms"),
    max_waiting: Annotated[int, _option("max_waiting", LIMITS)] = default("max_waiting"),
    max_upload_mb: Annotated[float, _option("max_upload_mb", LIMITS)] = default("max_upload_mb"),
    max_pixels: Annotated[int, _option("max_pixels", LIMITS)] = default("max_pixels"),
    provider: Annotated[str, _option("provider", PLACE)] = default("provider"),
    replicas: Annotated[int, _option("replicas", PLACE)] = default("replicas"),
    cluster: Annotated[str | None, _option("cluster", PLACE)] = default("cluster"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve an exported ONNX file with Ray Serve: POST an image to /classify, get its likeliest classes.

    Images that come at about the same time are computed together. Ctrl-C ends it once the
    requests in hand are answered. There is no password: whoever reaches the port may ask. With
    --json the line comes when it listens.
    """
    output = Output(json)
    config = ServeConfig.of(
        file=file,
        host=host,
        port=port,
        batch=batch,
        batch_wait_ms=batch_wait_ms,
        max_waiting=max_waiting,
        max_upload_mb=max_upload_mb,
        max_pixels=max_pixels,
        provider=provider,
        replicas=replicas,
        cluster=cluster,
    )
    status, stopping = err.status("Starting", spinner="dots"), False
    if err.is_terminal:
        status.start()
    try:
        with importing():
            from resnet_ops.serving import job

        with job.serving(config, lambda doing: status.update(f"Starting, {doing}")) as service:
            status.stop()
            _show(output, config, service)
            service.watch()
            stopping = True
            err.print("Stopping after requests in progress are answered; press Ctrl-C again to stop at once.")
    except KeyboardInterrupt:
        if stopping:
            raise UserError("Requests in progress were not answered.", exit_code=INTERRUPTED) from None
        raise
    finally:
        status.stop()


def _show(output: Output, config: ServeConfig, service: Any) -> None:
    inside, (url, *_) = service.inside, service.urls
    accuracy = "" if inside.val_accuracy is None else f", {percent(inside.val_accuracy)} validation accuracy"
    output.show(
        f"[bold green]Serving[/] {inside.model} ({inside.precision}) on {service.provider}: "
        f"{len(inside.class_names)} classes{accuracy}",
        *(f"  url      {each}" for each in service.urls),
        f"  request  curl --data-binary @photo.jpg '{url}/classify?top=5'",
        f"  docs     {url}/docs",
    )
    output.end(
        {
            "status": "serving",
            "url": url,
            "urls": service.urls,
            "file": config.file.absolute(),
            "model": inside.model,
            "classes": len(inside.class_names),
            "provider": service.provider,
            "replicas": service.replicas,
            "threads": service.threads,
        }
    )
