"""The HTTP side of the service: paths, responses and errors, and the deployment class that Ray Serve replicates.

Decoding and batching are in `service`.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import resnet_ops
from resnet_ops.export import runtime
from resnet_ops.export.binding import open_for_batches
from resnet_ops.export.classifier import Classifier
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving.service import BUSY, InferenceService, RefusedError, ServiceLimits

BINARY = {"type": "string", "format": "binary"}
BODIES = {
    "image/*": {"schema": BINARY},
    "multipart/form-data": {"schema": {"type": "object", "properties": {"image": BINARY}}},
    "application/json": {
        "schema": {"type": "object", "properties": {"image": {"type": "string", "contentEncoding": "base64"}}}
    },
}
IMAGE = {"requestBody": {"required": True, "content": BODIES}}


class RankedClass(BaseModel):
    """A class and its probability."""

    name: Annotated[str, Field(serialization_alias="class")]
    probability: float


class Classification(BaseModel):
    """The most likely classes of an image, the most likely first."""

    top: list[RankedClass]
    model: str


class Refusal(BaseModel):
    """The reason why a request was refused."""

    error: str


class Health(BaseModel):
    """The state of a replica, and the number of requests in progress."""

    status: str
    waiting: int


class ModelInfo(BaseModel):
    """The served file: its network, classes, dataset and verification."""

    file: str
    model: str
    precision: str
    classes: list[str]
    input: dict[str, Any]
    data: str
    val_accuracy: float | None
    selected_by: str | None
    fitted_on_all: bool
    validation: dict[str, Any] | None
    provider: str
    made_by: str


class Replica:
    """A copy of the service, which Ray Serve creates on any machine.

    Args:
        content: A list of one reference to the file's bytes; Serve would fetch one outside of a list anew each time.
        metadata: The file's metadata.
        name: The file's name.
        provider: 'cpu', 'cuda' or 'tensorrt'.
        limits: Of requests and batches.
        threads: Number of threads that decode, and that compute on a CPU.
    """

    def __init__(
        self, content: list[Any], metadata: ModelMetadata, name: str, provider: str, limits: ServiceLimits, threads: int
    ) -> None:
        import ray

        (reference,) = content
        resolved = runtime.resolve_provider(provider)
        computer = ThreadPoolExecutor(1, "compute")  # ONNX Runtime keeps CUDA graphs for the thread that captured them
        opening = computer.submit(open_for_batches, ray.get(reference), resolved, metadata, limits.batch, threads)
        classifier = Classifier.from_session(metadata, opening.result())
        self.service = InferenceService(name, classifier, limits, threads, computer)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app; the name is Ray Serve's."""
        return build_app(self.service)


def build_app(service: InferenceService) -> FastAPI:
    """Return the HTTP app of a service."""
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Refusal} for code in (400, 408, 413, 415, 422, 503)}
    metadata = service.metadata
    app = FastAPI(
        title=f"{metadata.model} on {metadata.data}",
        description="Send an image, get its most likely classes: `curl --data-binary @photo.jpg URL/classify?top=5`",
        version=resnet_ops.__version__,
        docs_url=None,  # it loads its scripts from the internet, where many services cannot reach
        redoc_url=None,
    )

    @app.post("/classify", responses=refusals, openapi_extra=IMAGE)
    async def classify(
        request: Request, top: Annotated[int, Query(ge=1, description="Classes to name, at most all.")] = 5
    ) -> Classification:
        """Classify an image: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF; as it is, in a form, or as base64 in JSON."""
        ranked = await service.classify(request.stream(), request.headers, top)
        classes = [RankedClass(name=name, probability=probability) for name, probability in ranked]
        return Classification(top=classes, model=metadata.model)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Health:
        """Return the state of the service."""
        return Health(status="ok", waiting=service.waiting)

    @app.head("/", include_in_schema=False)
    @app.get("/")
    async def about() -> ModelInfo:
        """Return what is served."""
        return ModelInfo(
            file=service.name,
            model=metadata.model,
            precision=metadata.precision,
            classes=list(metadata.class_names),
            input=metadata.preprocessing.model_dump(mode="json"),
            data=metadata.data,
            val_accuracy=metadata.val_accuracy,
            selected_by=metadata.selected_by,
            fitted_on_all=metadata.fitted_on_all,
            validation=metadata.validation,
            provider=service.classifier.session.provider,
            made_by=metadata.made_by,
        )

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return a page on the API, with a form to try it."""
        return HTMLResponse(_docs_page(app, metadata))

    _add_error_handlers(app)
    return app


def _docs_page(app: FastAPI, metadata: ModelMetadata) -> str:
    """Return a page that loads nothing from elsewhere."""
    loader = PackageLoader("resnet_ops.serving", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.get_template("docs.html.j2").render(api=app.openapi(), classes=len(metadata.class_names))


def _add_error_handlers(app: FastAPI) -> None:
    """Let every error be of the same form: `{"error": "reason"}`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == BUSY else None
        return JSONResponse({"error": error.reason}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        reason = f"{request.method} {request.url.path}: {error.detail}; available: POST /classify, GET /health, GET /"
        return JSONResponse({"error": reason}, error.status_code, error.headers)
