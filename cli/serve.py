"""`resnet-ops serve`: serves an exported file over HTTP until Ctrl-C, and shows its URL."""

from typing import TYPE_CHECKING

from resnet_ops.class_metrics import SELECT_NAMES
from resnet_ops.errors import INTERRUPTED, UserError
from resnet_ops.export.exported_files import with_exported_file
from resnet_ops.formatting import percent
from resnet_ops.serving.config import ServeConfig

from .config_options import Debug, Json, Options, options_of
from .console import CTRL_C, Output, err, literal, warn
from .startup import importing

if TYPE_CHECKING:
    from resnet_ops.serving.job import ServeResult

EXAMPLES = """
resnet-ops serve model.onnx  # on this machine, for this machine
curl --data-binary @photo.jpg 'http://127.0.0.1:8000/classify?top=5'  # classify an image
resnet-ops serve model.onnx --host 0.0.0.0 --replicas 2 --provider cuda  # for other machines, on two GPUs
"""


@options_of(ServeConfig)
def serve(options: Options, json: Json = False, debug: Debug = False) -> None:
    """Serve an exported ONNX file over HTTP with Ray Serve: POST an image to /classify to get its class probabilities.

    Concurrent requests are batched. Ctrl-C stops the server after it has answered pending requests. There is no
    authentication. With --json the line is printed once the server listens.
    """
    output = Output(json)
    config = with_exported_file(options.make(ServeConfig))
    status, stopping = err.status("Starting", spinner="dots"), False
    if err.is_live:
        status.start()
    try:
        with importing():
            from resnet_ops.serving.location import find_free_port

            find_free_port(config.host, config.port)  # before Ray is imported
            from resnet_ops.serving import job

        with job.start_service(config, lambda step: status.update(f"Starting, {step}"), warn) as service:
            status.stop()
            _show(output, service)
            service.watch()
            stopping = True
            message = "Stopping after requests in progress are answered; press Ctrl-C again to stop at once."
            err.print(message, soft_wrap=True, width=err.width - CTRL_C)
    except KeyboardInterrupt:
        if stopping:
            raise UserError("Requests in progress were not answered.", exit_code=INTERRUPTED) from None
        raise
    finally:
        status.stop()


def _show(output: Output, service: "ServeResult") -> None:
    metadata = service.metadata
    chosen = f" (epoch chosen by {SELECT_NAMES[metadata.selected_by]})" if metadata.selected_by else ""
    accuracy = (
        "" if metadata.val_accuracy is None else f", {percent(metadata.val_accuracy)} validation accuracy{chosen}"
    )
    accuracy = ", fitted on all images" if metadata.fitted_on_all else accuracy
    output.show(
        f"[bold green]Serving[/] {literal(metadata.model)} ({metadata.precision}) on {service.provider}: "
        f"{len(metadata.class_names)} classes{accuracy}",
        *(f"  url      {each}" for each in service.urls),
        f"  request  curl --data-binary @photo.jpg '{service.url}/classify?top=5'",
        f"  docs     {service.url}/docs",
        "  stop     Ctrl-C stops it",
    )
    output.end(service)
