"""Describes the public names of the client and their signatures, as lines of text.

`make public-api` writes them to `public_api.txt` beside this file. Modules are left out of the
annotations, and every value is written alike in every run.
"""

import enum
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keybearer.access import AccessRule

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = (
    "keybearer",
    "keybearer.access",
    "keybearer.aio",
    "keybearer.credentials",
    "keybearer.errors",
    "keybearer.fastapi",
    "keybearer.models",
    "keybearer.testing",
    "keybearer.web",
)


def describe() -> list[str]:
    """Return a line for each public name and for each public member of a class."""
    lines: list[str] = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        lines.append(f"[{module_name}]")
        for name in sorted(module.__all__):
            lines += _lines(name, getattr(module, name), module_name)
        lines.append("")
    return lines[:-1]


def _lines(name: str, value: Any, module_name: str) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class_lines(name, value, module_name)
    elif inspect.isroutine(value):
        yield f"def {name}{_signature(value)}"
    elif name == "__version__":
        yield "__version__: str"
    else:
        yield f"{name} = {_value(value)}"


def _class_lines(name: str, value: type, module_name: str) -> Iterator[str]:
    # A class that several modules offer is described where it belongs.
    if module_name == "keybearer" and _is_public_elsewhere(name, value):
        yield f"class {name}: see {_home(name, value)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    if issubclass(value, enum.Enum):
        yield from (f"    {member.name} = {member.value!r}" for member in value)
        return
    if "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
        yield f"    def __init__{_signature(value)}"
    for field, annotation in inspect.get_annotations(value).items():
        if not field.startswith("_"):
            yield f"    {field}: {_annotation(annotation)}"
    for member, attribute in sorted(vars(value).items()):
        if member == "__call__" or not member.startswith("_"):
            yield from _member_lines(member, attribute)


def _member_lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, property):
        returned = inspect.signature(value.fget).return_annotation  # type: ignore[arg-type]
        yield f"    {name}: {_annotation(returned)} (read only)"
    elif isinstance(value, classmethod):
        yield f"    classmethod {name}{_signature(value.__func__)}"
    elif inspect.isfunction(value):
        kind = "async def" if inspect.iscoroutinefunction(value) else "def"
        yield f"    {kind} {name}{_signature(value)}"


def _is_public_elsewhere(name: str, value: type) -> bool:
    return _home(name, value) != "keybearer"


def _home(name: str, value: type) -> str:
    for module_name in MODULES[1:]:
        module = importlib.import_module(module_name)
        if name in module.__all__ and getattr(module, name) is value:
            return module_name
    return "keybearer"


def _signature(value: Any) -> str:
    signature = inspect.signature(value)
    empty = inspect.Parameter.empty
    parameters = [
        one.replace(
            annotation=empty if one.annotation is empty else _Text(_annotation(one.annotation)),
            default=empty if one.default is empty else _Text(_value(one.default)),
        )
        for one in signature.parameters.values()
    ]
    returned = signature.return_annotation
    return str(
        signature.replace(
            parameters=parameters,
            return_annotation=empty if returned is empty else _Text(_annotation(returned)),
        )
    )


def _annotation(value: Any) -> str:
    """Return an annotation without the modules of its classes: they are internal or well known."""
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return (
        re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)
        .replace("NoneType", "None")
        .replace("~", "")
    )


class _Text:
    """Prints itself as a text without quotation marks."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _value(value: Any) -> str:
    """Return a value as text that is the same in every run and in every version of Python."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    if isinstance(value, AccessRule):
        return "AccessRule()" if value == AccessRule() else repr(value)
    if isinstance(value, types.UnionType) or hasattr(value, "__origin__"):
        return _annotation(value)
    return "<callable>" if callable(value) else repr(value)


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join([*describe(), ""]), encoding="utf-8")
