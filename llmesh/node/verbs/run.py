"""The verb that runs a model, on whoever of the mesh serves it."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from llmesh.core.amount import Amount
from llmesh.core.reference import ModelRef
from llmesh.errors import NotFound
from llmesh.node.verbs.asked import Asked, of_a_gateway
from llmesh.node.verbs.asking import as_text, carry_out
from llmesh.node.verbs.models import MESH, REF

if TYPE_CHECKING:
    from llmesh_sdk import InferenceResult
    from llmesh_sdk.stream import InferenceStream

__all__ = ["run"]

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and line feed."""


class _Finite(click.FloatRange):
    """A range that also refuses what only looks like a number: nan and inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be meant.", param, ctx)
        return number


def _values(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not values:
        raise click.BadParameter('it is a JSON object of values by name, such as {"x": [1, 2]}.')
    return values


@click.command("run")
@click.argument("model", type=REF)
@click.argument("text", required=False)
@click.option(
    "--input", "values", type=_values, metavar="JSON", help='Values by name instead of a text: {"x": [1, 2]}.'
)
@click.option("--max-fee", type=MESH, metavar="MESH", help="The most that it may cost.")
@click.option(
    "--timeout",
    type=_Finite(0, 3600, min_open=True),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="For the whole.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N", help="The most tokens of text to make."
)
@click.option(
    "--temperature",
    type=_Finite(min=0),
    metavar="T",
    help="How freely to choose words; 0 is always the likeliest.",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The same seed chooses the same words.")
@of_a_gateway
def run(
    asked: Asked,
    model: ModelRef,
    text: str | None,
    values: dict[str, Any] | None,
    max_fee: Amount | None,
    timeout: float,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Run MODEL on TEXT and print what it answers.

    Text is printed as it comes.  - as TEXT reads it from standard input.  Who served it, the fee and
    the receipt are told on standard error.  Ctrl-C stops the work at the provider too.  With --json
    each frame is a line of JSON.

    \b
    Examples:
      llmesh run gpt-mini "给我讲个故事" --max-tokens 120
      llmesh run sentiment-analyzer - < review.txt
      llmesh run my-model --input '{"x": [[1, 2, 3]]}'
    """
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    input = _input(text, values) | {name: value for name, value in given.items() if value is not None}

    async def main() -> None:
        async with asked.client() as client, client.stream(str(model), input, timeout, max_fee) as stream:
            await (_as_lines if asked.as_json else _as_text)(stream)
        if not asked.as_json:
            click.echo(await _summary(asked, stream.result), err=True)

    carry_out(main)


def _input(text: str | None, values: dict[str, Any] | None) -> dict[str, Any]:
    if (text is None) == (values is None):
        raise click.UsageError("Give either a text, - for one on standard input, or --input JSON.")
    if values is not None:
        return values
    if text != "-":
        return {"text": text}
    try:
        return {"text": sys.stdin.buffer.read().decode().rstrip("\n")}
    except UnicodeDecodeError:
        raise click.UsageError("What comes on standard input is not UTF-8.") from None


async def _as_text(stream: InferenceStream) -> None:
    """The text as it comes; of an answer that is none, each value by its name."""
    last = ""
    async for piece in stream:
        click.echo(_shown(piece.text), nl=False)
        last = piece.text or last
    if last:
        click.echo(nl=not last.endswith("\n"))
        return
    output = stream.result.output
    for name, value in output.items():
        shown = value if isinstance(value, str) else as_text(value, indent=None)
        click.echo(_shown(shown if len(output) == 1 else f"{name}: {shown}"))


def _shown(text: str) -> str:
    """A model's text, for a terminal without the characters that would steer it."""
    return _STEERING.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text


async def _as_lines(stream: InferenceStream) -> None:
    """Each frame as a line of JSON, named as on the WebSocket."""
    async for piece in stream:
        click.echo(as_text({"type": "chunk", "index": piece.index, "text": piece.text}, indent=None))
    result = stream.result
    usage = asdict(result.usage)
    skipped = [{"peer": each.peer_id, "code": each.code, "reason": each.reason} for each in result.skipped]
    told = {
        "type": "completed",
        "request_id": result.request_id,
        "model": result.model,
        "model_id": result.model_id,
        "output": result.output,
        "fee": Decimal(str(result.fee)),
        "provider": result.provider,
        "latency_ms": result.latency_ms,
        "usage": usage,
        "attempts": result.attempts,
        "skipped": skipped,
    }
    click.echo(as_text(told, indent=None))


async def _summary(asked: Asked, result: InferenceResult) -> str:
    """Who did it, for how much, and what proves it."""
    tokens = f", {result.usage.output_tokens} tokens" if result.usage.output_tokens else ""
    fee = f"{result.fee} MESH" if result.fee else "free"
    return (
        f"{result.model} by {result.provider}: {fee}{tokens}, {result.latency_ms:.0f} ms\n"
        f"request {result.request_id}: {await _receipt(asked, result)}"
    )


async def _receipt(asked: Asked, result: InferenceResult) -> str:
    try:
        async with asked.desk() as desk:
            told = await desk.get(f"/api/v1/receipts/{result.request_id}")
    except NotFound:
        return "no receipt" if result.fee else "no receipt was kept, as nothing was charged"
    genuine = all(row["charge"]["genuine"] for row in told["receipts"])
    explain = f"llmesh explain {result.request_id}{asked.again}"
    return f"receipt {'genuine' if genuine else 'NOT GENUINE'}; `{explain}` shows it"
