"""Where options come from: flags or keywords win, then `LLMESH_*` variables, then a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from llmesh.errors import ValidationFailed
from llmesh.node.config import OPTIONS, NodeConfig, Option

__all__ = ["configure", "strangers", "variable"]

_OTHERS = ("LLMESH_CONFIG", "LLMESH_URL", "LLMESH_KEY")
"""Of the command line and of the SDK."""


def variable(name: str) -> str:
    """The environment variable of an option."""
    return f"LLMESH_{name.upper()}"


def configure(
    given: Mapping[str, object],
    environ: Mapping[str, str],
    file: str | Path | None = None,
    spell: Callable[[str], str] = str,
) -> NodeConfig:
    """The node's settings from all sources.

    `given` are flags or keywords by field name, which `spell` writes as the user did; `file` (else
    LLMESH_CONFIG) names a TOML file.  Raises ValidationFailed, naming the option and where it was set.
    """
    path = file or environ.get("LLMESH_CONFIG")
    found = dict(_from_file(Path(path))) if path else {}
    found |= dict(_from_environment(environ))
    found |= {name: _read(name, value, spell(name)) for name, value in given.items()}
    return NodeConfig(**found)  # type: ignore[arg-type]  # each value was read by its field's reader


def strangers(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each `LLMESH_*` variable that nothing reads: mistyped, it changed nothing."""
    known = [*map(variable, OPTIONS), *_OTHERS]
    for name in sorted(environ):
        if name.startswith(variable("")) and name not in known:
            yield f"{name} is ignored: nothing reads such a variable{_nearest(name, known)}."


def _nearest(name: str, known: Sequence[str]) -> str:
    """By what follows the prefix, which all have in common."""
    start = len(variable(""))
    near = get_close_matches(name[start:], [each[start:] for each in known], 1)
    return f"; {variable(near[0])} is one" if near else ""


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    for name, option in OPTIONS.items():
        text = environ.get(variable(name), "")
        if text:
            value = [part for part in re.split(r"[;\n]", text) if part.strip()] if option.repeated else text
            yield name, _read(name, value, variable(name))


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        settings = tomllib.loads(path.expanduser().read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationFailed(f"The configuration file {path} cannot be read: {_reason(error)}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValidationFailed(f"The configuration file {path} is not TOML: {error}.") from None
    for key, value in settings.items():
        yield key.replace("-", "_"), _read(key.replace("-", "_"), value, f"{key} in {path}")


def _read(name: str, value: object, source: str) -> object:
    option = OPTIONS.get(name)
    if option is None:
        raise ValidationFailed(f"{source}: there is no such option; the options are {', '.join(OPTIONS)}.")
    try:
        return _read_all(option, value) if option.repeated else option.read(value)
    except ValidationFailed as error:
        raise ValidationFailed(f"{source}: {error.message}") from None


def _read_all(option: Option, value: object) -> tuple[object, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(option.read(item) for item in items))


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"
