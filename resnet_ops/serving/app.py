"""The service as HTTP: which paths there are, what goes in and comes out, and how it is refused."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import resnet_ops
from resnet_ops.serving.service import BUSY, InferenceService, RefusedError

IMAGE = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


class RankedClass(BaseModel):
    """A class, and how likely it is that the image shows it."""

    name: Annotated[str, Field(serialization_alias="class")]
    probability: float


class Classification(BaseModel):
    """What an image shows, the likeliest class first."""

    top: list[RankedClass]
    model: str


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str


class Health(BaseModel):
    """Whether images are taken, and how many are in hand."""

    status: str
    waiting: int


class ModelInfo(BaseModel):
    """What is served: the file's network, its classes, what it was trained on and what its proof found."""

    file: str
    model: str
    precision: str
    classes: list[str]
    input: dict[str, Any]
    data: str
    val_accuracy: float | None
    validation: dict[str, Any] | None
    provider: str
    made_by: str


def build(service: InferenceService) -> FastAPI:
    """The paths of a service."""
    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Refusal} for code in (400, 408, 413, 415, 422, 503)}
    metadata = service.metadata
    app = FastAPI(
        title=f"{metadata.model} on {metadata.data}",
        description="Send an image, get its most likely classes: `curl --data-binary @photo.jpg URL/classify?top=5`",
        version=resnet_ops.__version__,
    )

    @app.post("/classify", responses=refusals, openapi_extra=IMAGE)
    async def classify(
        request: Request, top: Annotated[int, Query(ge=1, description="Classes to name, at most all.")] = 5
    ) -> Classification:
        """Say what an image shows. The body is the image itself: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF."""
        found = await service.classify(request.stream(), request.headers, top)
        return Classification(
            top=[RankedClass(name=name, probability=share) for name, share in found], model=metadata.model
        )

    @app.get("/health")
    async def health() -> Health:
        """Say that images are taken."""
        return Health(status="ok", waiting=service.waiting)

    @app.get("/")
    async def about() -> ModelInfo:
        """Say what is served."""
        return ModelInfo(
            file=service.name,
            model=metadata.model,
            precision=metadata.precision,
            classes=list(metadata.class_names),
            input=metadata.preprocessing.model_dump(mode="json"),
            data=metadata.data,
            val_accuracy=metadata.val_accuracy,
            validation=metadata.validation,
            provider=service.classifier.session.provider,
            made_by=metadata.made_by,
        )

    _say_why(app)
    return app


def _say_why(app: FastAPI) -> None:
    """Whatever is refused is refused alike: `{"error": "why"}`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == BUSY else None
        return JSONResponse({"error": error.reason}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        reason = f"{request.method} {request.url.path}: {error.detail}; available: POST /classify, GET /health, GET /"
        return JSONResponse({"error": reason}, error.status_code, error.headers)
