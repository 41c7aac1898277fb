"""Finding the user's ``module:attribute``, and saying clearly why it cannot be used."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

import limpet_adapters
import limpet_balancer
import limpet_cluster
import limpet_worker

BUILT_IN: Final = "limpet_cluster.chat.app:io"
"""What is served when no application is named."""

T = TypeVar("T")

_SPEC: Final = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)(:(?P<attribute>\w+(\.\w+)*))?")
_OURS: Final = tuple(
    f"{Path(package.__path__[0])}{os.sep}"
    for package in (limpet_adapters, limpet_balancer, limpet_worker, limpet_cluster)
)


class AppError(Exception):
    """The application cannot be used; the message is for its author."""


def parse(spec: str) -> tuple[str, str]:
    """Split ``module:attribute``; without an attribute it is ``io``.

    Raises:
        AppError: it has another form.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or match["module"].endswith(".py") or spec.endswith(".py"):
        hint = spec.partition(":")[0].removesuffix(".py").replace("/", ".").strip(".") or "app"
        raise AppError(f"{spec!r}: expected module:attribute, for example {hint}:io")
    return match["module"], match["attribute"] or "io"


def load(spec: str, directory: Path, expected: type[T]) -> T:
    """Import the module, with its directory first on the path, and return the attribute.

    Args:
        spec: ``module:attribute``.
        directory: where the module lies.
        expected: what the attribute must be an instance of.

    Raises:
        AppError: no such module or attribute, another type, or the module raised; the message
            then ends with the traceback of the user's own lines.
    """
    module_name, attribute = parse(spec)
    path = os.fspath(directory)
    if path not in sys.path:
        sys.path.insert(0, path)
    importlib.invalidate_caches()
    module = _import(module_name, directory)
    found: object = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppError(_missing(module, module_name, attribute, expected)) from None
    if not isinstance(found, expected):
        raise AppError(
            f"{module_name}:{attribute} is a {_type_name(found)}; "
            f"expected a limpet {expected.__name__}{_suggestion(module, expected)}"
        )
    return found


def _import(name: str, directory: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AppError(
                f"no module {error.name!r} in {directory} or where Python looks "
                "(--app-dir names another folder)"
            ) from None
        raise AppError(_raised(name, error)) from None
    except SystemExit as error:
        raise AppError(_raised(name, error)) from None
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises
        raise AppError(_raised(name, error)) from None


def _raised(name: str, error: BaseException) -> str:
    return f"module {name!r} cannot be imported\n\n{users_traceback(error)}"


def users_traceback(error: BaseException) -> str:
    """Return a traceback without the lines of limpet and of the import system.

    Where none of the user's own lines would be left, the fault may be ours: then all are shown.
    """
    summary = traceback.TracebackException.from_exception(error)
    if not isinstance(error, SyntaxError) and all(_is_ours(one.filename) for one in summary.stack):
        return "".join(summary.format()).rstrip()
    pending: list[traceback.TracebackException | None] = [summary]
    while pending:
        part = pending.pop()
        if part is not None:
            kept = [frame for frame in part.stack if not _is_ours(frame.filename)]
            part.stack = traceback.StackSummary.from_list(kept)
            pending += [part.__cause__, part.__context__]
    text = "".join(summary.format()).rstrip()
    if not summary.stack:  # a header with nothing below it says nothing
        text = text.removeprefix("Traceback (most recent call last):\n")
    return text


def _is_ours(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", *_OURS)) or "importlib" in Path(filename).parts


def _missing(module: ModuleType, name: str, attribute: str, expected: type[object]) -> str:
    message = f"module {name!r} has no attribute {attribute!r}"
    suggestion = _suggestion(module, expected)
    if suggestion:
        return message + suggestion
    near = difflib.get_close_matches(attribute, vars(module), 1)
    return f"{message}; did you mean {name}:{near[0]}?" if near else message


def _suggestion(module: ModuleType, expected: type[object]) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, expected)]
    if not names:
        return ""
    return f"; did you mean {' or '.join(f'{module.__name__}:{name}' for name in names[:3])}?"


def _type_name(value: object) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"
