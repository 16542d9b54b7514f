"""The HTTP side of the service: paths, responses and errors.

How requests are received and answered is in `service`.
"""

import functools
import json
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import resnet_ops
from resnet_ops.export.metadata import ModelMetadata
from resnet_ops.serving.limits import STATUS, Refusal, RefusedError
from resnet_ops.serving.metrics import CONTENT_TYPE
from resnet_ops.serving.service import InferenceService

CLASSIFY = "/classify"
BUSY = 503
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


class RefusalBody(BaseModel):
    """The reason why a request was refused."""

    error: str


class Health(BaseModel):
    """The state of the service, and the number of requests that wait for an answer."""

    status: str
    waiting: int


class ModelInfo(BaseModel):
    """The served file by its own word: its network, classes, dataset and the proof that it records."""

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


def build_app(service: InferenceService) -> FastAPI:
    """Return the HTTP app of a service."""
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": RefusalBody} for code in (*STATUS.values(), 422)}
    metadata = service.served.metadata
    app = FastAPI(
        title=f"{metadata.model} on {metadata.data}",
        description="Send an image, get its most likely classes: `curl --data-binary @photo.jpg 'URL/classify?top=5'`",
        version=resnet_ops.__version__,
        openapi_url=None,  # it writes the same text for every request
        docs_url=None,  # it loads its scripts from the internet, where many services cannot reach
        redoc_url=None,
    )

    @app.post(CLASSIFY, responses=refusals, openapi_extra=IMAGE)
    async def classify(
        request: Request, top: Annotated[int, Query(ge=1, description="Classes to name, at most all.")] = 5
    ) -> Classification:
        """Classify an image: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF; as it is, in a form, or as base64 in JSON."""
        answer = await service.classify(request.stream(), request.headers, top)
        classes = [RankedClass(name=name, probability=probability) for name, probability in answer.ranked]
        return Classification(top=classes, model=metadata.model)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Health:
        """Return the state of the service."""
        return Health(status="ok", waiting=service.waiting)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics of this gateway for Prometheus."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    @app.head("/", include_in_schema=False)
    @app.get("/")
    async def about() -> ModelInfo:
        """Return what is served."""
        return ModelInfo(
            file=service.served.file,
            model=metadata.model,
            precision=metadata.precision,
            classes=list(metadata.class_names),
            input=metadata.preprocessing.model_dump(mode="json"),
            data=metadata.data,
            val_accuracy=metadata.val_accuracy,
            selected_by=metadata.selected_by,
            fitted_on_all=metadata.fitted_on_all,
            validation=metadata.validation,
            provider=service.served.provider,
            made_by=metadata.made_by,
        )

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Return a page on the API, with a form to try it."""
        return HTMLResponse(docs_page())

    @app.head("/openapi.json", include_in_schema=False)
    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        """Return the description of the API that tools read."""
        return Response(api(), media_type="application/json")

    @functools.cache
    def docs_page() -> str:
        return _docs_page(app, metadata)

    @functools.cache
    def api() -> str:
        return json.dumps(app.openapi())

    _add_error_handlers(app)
    return app


def _docs_page(app: FastAPI, metadata: ModelMetadata) -> str:
    """Return a page that loads nothing from elsewhere."""
    loader = PackageLoader("resnet_ops.serving", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    first = RankedClass(name=metadata.class_names[0], probability=0.97)
    example = Classification(top=[first], model=metadata.model).model_dump(by_alias=True)
    template = environment.get_template("docs.html.j2")
    return template.render(api=app.openapi(), classes=len(metadata.class_names), example=json.dumps(example))


def refusal(refused: Refusal) -> JSONResponse:
    """Return the response to a request that is refused."""
    status = STATUS[refused.reason]
    headers = {"Retry-After": "1"} if status == BUSY else {}
    if refused.reason == "stopping":
        headers["Connection"] = "close"
    return JSONResponse({"error": refused.message}, status, headers)


def _add_error_handlers(app: FastAPI) -> None:
    """Let every error be of the same form: `{"error": "reason"}`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return refusal(error.refusal)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        available = "POST /classify, GET /health, GET /metrics, GET /, GET /docs, GET /openapi.json"
        reason = f"{request.method} {request.url.path}: {error.detail}; available: {available}"
        return JSONResponse({"error": reason}, error.status_code, error.headers)
