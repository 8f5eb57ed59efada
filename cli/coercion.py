"""Values of options without Typer's validators.

This file owns one shortcut. Typer builds a pydantic validator for each parameter of a command; importing pydantic and
building them takes a sixth of a second, a fifth of a short `cg-local fill`. Invariant: what is returned here is what
Typer returns; anything else than a plain value in its range, and a Typer with other internals, go Typer's own way.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

# Fewer digits than either type holds exactly, so that no rule about rounding is needed.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?")


class QuickParameters:
    """Beside Typer's command or group: its parameters convert plain values themselves.

    Parameters without the internals that the shortcut needs are left as they are.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, that of the help included."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        needed = "_runtime_param", "get_runtime_param", "type_descriptor"
        for param in params:
            if all(hasattr(param, name) for name in needed) and param._runtime_param is None:
                param._runtime_param = _QuickParam(param)
        return params


def plain_value(value: Any, annotation: Any, settings: Any) -> Any:
    """Return a value as a parameter's type has it.

    Args:
        value: text of the command line, or the default.
        annotation: int, float, str or an Enum of texts.
        settings: Typer's OptionInfo or ArgumentInfo.

    Raises:
        ValueError: another type, a value out of range, or one that is written in another way.
    """
    if settings.parser is not None or not isinstance(annotation, type):
        raise ValueError
    if annotation is str and type(value) is str:
        return value
    if annotation is int or annotation is float:
        return _number(value, annotation, settings)
    if issubclass(annotation, Enum):
        for choice in annotation:
            if value is choice or (type(value) is str and value == choice.value):
                return choice
    raise ValueError


def plain_texts(values: Any, settings: Any) -> list[str] | tuple[()]:
    """Return the words of an argument that takes any number of them, as Typer hands them over.

    Args:
        values: of the command line, or None.
        settings: Typer's ArgumentInfo.

    Raises:
        ValueError: they are no plain texts.
    """
    if settings.parser is not None or not (values is None or isinstance(values, list | tuple)):
        raise ValueError
    if not all(type(value) is str for value in values or ()):
        raise ValueError
    return list(values) if values else ()


def _number(value: Any, annotation: type[int] | type[float], settings: Any) -> int | float:
    if type(value) is str and (_INTEGER if annotation is int else _FLOAT).fullmatch(value):
        value = annotation(value)
    low, high = settings.min, settings.max
    is_within = type(value) is annotation and (low is None or value >= low) and (high is None or value <= high)
    if not is_within or settings.clamp:
        raise ValueError
    number: int | float = value
    return number


class _QuickParam:
    """In the place of Typer's converter of one parameter; a value that is not plain puts Typer's own there."""

    def __init__(self, param: Any) -> None:
        self._param = param

    def coerce(self, value: Any, **context: Any) -> Any:
        param = self._param
        if value is None and param.nargs == 1 and not param.multiple:
            return None
        try:
            if param.nargs == -1 and param.type_descriptor.annotation == list[str]:
                return plain_texts(value, param.type_descriptor.parameter_info)
            if param.nargs == 1 and not param.multiple:
                return plain_value(value, param.type_descriptor.annotation, param.type_descriptor.parameter_info)
        except (ValueError, AttributeError):  # AttributeError: a Typer whose settings have other names
            pass
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, **context)
