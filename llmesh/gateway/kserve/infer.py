"""POST /v2/models/{model}/infer: tensors in, tensors out.

With an input of BYTES each row of the inputs is an inference of its own and the outputs are stacked;
tensors of numbers alone go to the model as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quart import Response
from werkzeug.exceptions import UnsupportedMediaType

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.inference import InferenceRequest, Result
from llmesh.core.reference import ModelRef
from llmesh.errors import ValidationFailed
from llmesh.gateway.callers import Counted
from llmesh.gateway.inference import Router
from llmesh.gateway.inference_schema import MAX_TIMEOUT
from llmesh.gateway.kserve.messages import InferAnswer, InferBody, InputTensor, OutputTensor, decode_infer
from llmesh.gateway.kserve.metadata import ref_of
from llmesh.gateway.kserve.tensors import TEXTS, Named, datatype_of, named_of, texts_of, to_tensor
from llmesh.gateway.request import Request
from llmesh.gateway.rows import infer_all, row_id
from llmesh.gateway.schema import decode, encode, mesh, parse_amount, tellable

__all__ = ["HEADER", "MAX_ROWS", "post_infer"]

HEADER = "Inference-Header-Content-Length"
"""How many bytes of the body are its JSON, where tensors follow in binary."""
MAX_ROWS = 1000
BINARY = "application/octet-stream"
_LONGEST = round(MAX_TIMEOUT * 1_000_000)
_DIGITS = 12
_OURS = ("timeout", "max_fee", "binary_data_output")


async def post_infer(router: Router, request: Request) -> Response:
    """Run a model on tensors.  A client that hangs up stops the work."""
    body, tail = await _read(request)
    ref = ref_of(request)
    rows = _rows(body, _elements(body, tail))
    timeout, most = _limits(body)
    ids = [request.id, *(row_id(request.id, number) for number in range(1, len(rows)))]
    asked = [InferenceRequest(id, ref, row, timeout, most) for id, row in zip(ids, rows, strict=True)]
    request.caller.count(Counted.INFERENCE, len(asked))
    results = await infer_all(router, asked, request.caller.purse)
    stacked = any(tensor.datatype == TEXTS for tensor in body.inputs)
    with tellable():
        outputs = _outputs(results) if stacked else _plain(results[0])
        return _answer(body, ref, results, _wanted(body, outputs))


def _limits(body: InferBody) -> tuple[float, Amount | None]:
    """The seconds for each inference (Triton's `timeout` in microseconds), and the most that it may cost."""
    timeout, most = body.parameters.get("timeout", 30_000_000), body.parameters.get("max_fee")
    if isinstance(timeout, bool | str) or not 0 < timeout <= _LONGEST:
        raise ValidationFailed(f"The parameter timeout is microseconds, above 0 and at most {_LONGEST}.")
    return timeout / 1_000_000, None if most is None else parse_amount(most, "max_fee")


async def _read(request: Request) -> tuple[InferBody, bytes]:
    """The JSON, and what comes after it."""
    if request.mimetype not in ("application/json", BINARY, ""):  # Triton's client sends none
        raise UnsupportedMediaType(f"The body is application/json, or {BINARY} with {HEADER}.")
    data = await request.bounded_bytes()
    size = request.headers.get(HEADER)
    if size is None:
        return decode(data, decode_infer), b""
    if len(size) > _DIGITS or not size.isdecimal() or int(size) > len(data):
        raise ValidationFailed(f"{HEADER} must be at most the length of the body.")
    return decode(data[: int(size)], decode_infer), data[int(size) :]


def _elements(body: InferBody, tail: bytes) -> list[tuple[str, ...] | Tensor]:
    """The texts or the tensor of each input."""
    found: list[tuple[str, ...] | Tensor] = []
    at = 0
    for tensor in body.inputs:
        size = tensor.parameters.get("binary_data_size")
        data = tensor.data
        if isinstance(size, int):
            if not 0 <= size <= len(tail) - at:
                raise ValidationFailed(f"Input {tensor.name}: the body has not as many bytes after its JSON.")
            data, at = tail[at : at + size], at + size
        found.append(_element(tensor, data))
    if at < len(tail):
        raise ValidationFailed(f"{len(tail) - at} bytes at the end of the body belong to no input.")
    return found


def _element(tensor: InputTensor, data: object) -> tuple[str, ...] | Tensor:
    given = data if isinstance(data, bytes | list) else None
    if given is None:
        raise ValidationFailed(f"Input {tensor.name} has neither data nor binary_data_size.")
    if tensor.datatype == TEXTS:
        return texts_of(tensor.name, tensor.shape, given)
    return to_tensor(tensor.name, tensor.datatype, tensor.shape, given)


def _rows(body: InferBody, elements: Sequence[tuple[str, ...] | Tensor]) -> list[dict[str, Value]]:
    """The named values of each inference."""
    said: dict[str, Value] = {name: v for name, v in body.parameters.items() if name not in _OURS}
    names = [tensor.name for tensor in body.inputs]
    lengths = {len(each) for each in elements if isinstance(each, tuple)}
    if not lengths:
        return [
            said
            | {name: each for name, each in zip(names, elements, strict=True) if isinstance(each, Tensor)}
        ]
    (rows,) = lengths if len(lengths) == 1 else (0,)
    if not 0 < rows <= MAX_ROWS:
        raise ValidationFailed(f"All texts of a request are as many, 1 to {MAX_ROWS}.")
    columns = [
        each if isinstance(each, tuple) else _column(name, each, rows)
        for name, each in zip(names, elements, strict=True)
    ]
    return [{**said, **dict(zip(names, row, strict=True))} for row in zip(*columns, strict=True)]


def _column(name: str, tensor: Tensor, rows: int) -> tuple[Value, ...]:
    """The number that each row has under this name; one alone is for all."""
    flat = Tensor(tensor.dtype, (math.prod(tensor.shape),), tensor.data).tolist()
    numbers: list[Value] = list(flat) if isinstance(flat, list) else [flat]
    if len(numbers) not in (1, rows):
        raise ValidationFailed(f"Input {name} has {len(numbers)} numbers for {rows} texts.")
    return tuple(numbers * rows if len(numbers) == 1 else numbers)


def _outputs(results: Sequence[Result]) -> list[Named]:
    names = [name for name in results[0].output if all(name in result.output for result in results)]
    return [named_of(name, [result.output[name] for result in results]) for name in names]


def _plain(result: Result) -> list[Named]:
    """The model's own tensors as they are; other values as one row."""
    return [
        Named(name, datatype_of(value.dtype), value.shape, value)
        if isinstance(value, Tensor)
        else named_of(name, [value])
        for name, value in result.output.items()
    ]


def _wanted(body: InferBody, outputs: list[Named]) -> list[Named]:
    if not body.outputs:
        return outputs
    there = {output.name: output for output in outputs}
    missing = [wanted.name for wanted in body.outputs if wanted.name not in there]
    if missing:
        raise ValidationFailed(f"The model has no output {missing[0][:60]!r}; it has {', '.join(there)}.")
    return [there[wanted.name] for wanted in body.outputs]


def _answer(body: InferBody, ref: ModelRef, results: Sequence[Result], outputs: Sequence[Named]) -> Response:
    asked = {wanted.name: wanted.parameters.get("binary_data") for wanted in body.outputs}
    default = body.parameters.get("binary_data_output", False)
    tail, written = [], []
    for output in outputs:
        binary = asked.get(output.name)
        told = OutputTensor(output.name, output.datatype, list(output.shape))
        if default if binary is None else binary:
            tail.append(output.binary)
            told.parameters = {"binary_data_size": len(tail[-1])}
        else:
            told.data = output.numbers
        written.append(told)
    first = results[0]
    fee = sum((result.fee for result in results[1:]), first.fee)
    served = {"provider": first.provider, "fee": mesh(fee), "request_id": first.request_id}
    head = encode(InferAnswer(first.model, ref.version or "", body.id, written, served))
    if not tail:
        return Response(head, content_type="application/json")
    response = Response(head + b"".join(tail), content_type=BINARY)
    response.headers[HEADER] = str(len(head))
    return response
