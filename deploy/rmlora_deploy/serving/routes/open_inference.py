"""The Open Inference Protocol, version 2: raw tensors in, raw tensors out (KServe's and Triton's REST interface).

``parameters.adapters`` names a model for each row; without it, all rows use the model in the path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema

from rmlora._version import __version__
from rmlora.errors import InputError
from rmlora.unicode_text import is_unicode
from rmlora_deploy.bundles.manifest import TensorEntry
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName
from rmlora_deploy.serving.json_bodies import JsonRoute
from rmlora_deploy.serving.middleware.media_type import BINARY_HEADER
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.routes.context import ServiceOf, StateOf
from rmlora_deploy.serving.routes.lists import FIRST_ERROR, Ids
from rmlora_deploy.serving.schemas import declared

__all__ = ["NO_BINARY", "router"]

router = APIRouter(
    route_class=JsonRoute, prefix="/v2", tags=["Open Inference Protocol"], responses=declared(401, 503, protocol=True)
)

_TYPES = {"INT64": "int64", "INT32": "int32", "FP32": "float32", "FP16": "float16", "BOOL": "bool"}
_NAMES = {"float": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
NO_BINARY = "Send tensors as JSON (binary_data=False): this server does not support the binary extension."
_KINDS = {"i": "i", "f": "fi", "b": "b"}
"""Kind of a numpy type → kinds of JSON values accepted for it."""
_VERSION = "1"
_ANSWERS = "FP32"
"""Type of the numbers in answers, also of a graph in half precision."""


def _check_array(value: Any) -> Any:
    """Return ``value`` if it is an array.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, np.ndarray):
        raise ValueError("Input should be a valid list")
    return value


Array = Annotated[Any, AfterValidator(_check_array)]
"""What a long list of numbers comes as."""


def _encodable(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("has half of a surrogate pair")
    return text


class Tensor(BaseModel):
    """A tensor; ``data`` flat or nested, in row-major order."""

    name: str = Field(max_length=200, examples=["input_ids"])
    shape: Ids = Field(min_length=1, max_length=8, examples=[[1, 3]])
    datatype: str = Field(description="INT64, INT32, FP32, FP16 or BOOL.", examples=["INT64"])
    data: Annotated[list[Any] | Array, WithJsonSchema({"type": "array", "items": {}})] = Field(
        examples=[[[101, 2023, 102]]]
    )


class RequestedOutput(BaseModel):
    """An output to return."""

    name: str = Field(examples=["logits"])


class InferRequest(BaseModel):
    """What to compute."""

    id: Annotated[str, AfterValidator(_encodable)] | None = Field(None, description="Repeated in the response.")
    inputs: Annotated[list[Tensor], FIRST_ERROR] = Field(min_length=1, max_length=64)
    outputs: Annotated[list[RequestedOutput], FIRST_ERROR] | None = Field(None, max_length=64)
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="`adapters` names a model for each row; without it, all rows use the one in the path.",
        examples=[{"adapters": ["spam"]}],
    )


class OutputTensor(BaseModel):
    """An output; ``data`` is flat."""

    name: str
    datatype: Literal["FP32"]
    shape: list[int]
    data: list[float]


class InferResponse(BaseModel):
    """The outputs."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


_INFER: dict[int | str, dict[str, Any]] = {
    200: {"model": InferResponse},
    **declared(400, 404, 408, 413, 429, 504, protocol=True),
}


@router.get("")
async def server() -> dict[str, Any]:
    """Name the server."""
    return {"name": "rmlora-deploy", "version": __version__, "extensions": []}


@router.get("/models/{name}", responses=declared(404, protocol=True))
@router.get("/models/{name}/versions/1", responses=declared(404, protocol=True))
async def metadata(name: str, service: ServiceOf) -> dict[str, Any]:
    """Describe a model's tensors."""
    model = service.registry.model(name)
    graph = model.runner.bundle.manifest.model
    return {
        "name": name,
        "versions": [_VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [_described(item) for item in graph.inputs],
        "outputs": [{**_described(item), "datatype": _ANSWERS} for item in graph.outputs[:1]],
    }


@router.get("/models/{name}/ready", responses=declared(404, protocol=True))
@router.get("/models/{name}/versions/1/ready", responses=declared(404, protocol=True))
async def ready(name: str, service: ServiceOf) -> dict[str, Any]:
    """Say that a model is ready."""
    model = service.registry.model(name)
    model.runner.availability.check([model.adapter])
    return {"name": model.id, "ready": True}


@router.post("/models/{name}/infer", response_model=None, responses=_INFER)
@router.post("/models/{name}/versions/1/infer", response_model=None, responses=_INFER)
async def infer(name: str, body: InferRequest, request: Request, service: ServiceOf, state: StateOf) -> JSONResponse:
    """Run a model on raw tensors."""
    model = service.registry.model(name)
    if BINARY_HEADER in request.headers:
        raise InputError(NO_BINARY)
    output = model.runner.bundle.manifest.model.outputs[0].name
    if body.outputs and [item.name for item in body.outputs] != [output]:
        raise InputError(f"The model has one output: {output}.")
    if len({tensor.name for tensor in body.inputs}) < len(body.inputs):
        raise InputError("Two inputs have the same name.")
    tensors = {tensor.name: _array(tensor) for tensor in body.inputs}
    count = len(next(iter(tensors.values())))
    adapters = _adapters(body.parameters.get("adapters"), model, count, service)
    rows = service.reader.tensor_rows(model.runner, tensors, adapters)
    answers = await service.compute(model.runner, rows, model.id, state)
    if len({answer.shape for answer in answers}) > 1:
        raise InputError("These adapters have different numbers of labels: send a separate request for each.")
    result = np.stack(answers).astype(np.float32)
    if not np.isfinite(result).all():
        raise InputError("The model answers these tensors with NaN or infinity.")
    tensor = {"name": output, "datatype": _ANSWERS, "shape": list(result.shape), "data": result.ravel().tolist()}
    return JSONResponse(
        {"model_name": name, "model_version": _VERSION, "id": body.id or state["request_id"], "outputs": [tensor]}
    )


def _adapters(value: Any, model: ServedModel, rows: int, service: ServiceOf) -> list[AdapterName | None]:
    if value is None:
        return [model.adapter] * rows
    if not isinstance(value, list) or len(value) != rows or not all(isinstance(item, str) for item in value):
        raise InputError(f"parameters.adapters must name a model for each of the {rows} rows.")
    named = [service.registry.model(item) for item in value]
    if any(item.runner is not model.runner for item in named):
        raise InputError("All rows of a request must be for models of one bundle.")
    return [item.adapter for item in named]


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.datatype == "BYTES":
        raise InputError(
            f"'{tensor.name}' is BYTES, but the model takes numbers, such as token ids: send texts and images to /classify "
            "or /v1/embeddings."
        )
    dtype = _TYPES.get(tensor.datatype)
    if dtype is None:
        raise InputError(f"'{tensor.name}' has an unknown datatype: use one of {', '.join(_TYPES)}.")
    if any(size < 1 for size in tensor.shape):
        raise InputError(f"'{tensor.name}' needs a shape of positive sizes.")
    try:
        given = np.asarray(tensor.data)
        if given.dtype.kind not in _KINDS[np.dtype(dtype).kind]:  # 4.5 is not an integer, and "4" is not a number
            raise ValueError
        with np.errstate(over="ignore"):
            values = given.astype(dtype).ravel()
        if values.dtype.kind == "i" and (values != given.ravel()).any():  # 2**40 does not fit into 32 bits
            raise ValueError
        return values.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"The data of '{tensor.name}' is not {tensor.datatype} of the shape {tensor.shape}.") from None


def _described(item: TensorEntry) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in item.shape]
    return {"name": item.name, "datatype": _NAMES.get(str(item.dtype), str(item.dtype).upper()), "shape": shape}
