"""Values of settings as users write them: converted to the setting's type, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from selfguide.errors import UserError, nearest


def parse_value(value: Any, hint: Any, limits: Mapping[str, Any], where: str) -> Any:
    """A setting's value.

    Args:
        value: a value, or its text ("8", "1e-4", "none", "noise,length").
        hint: the setting's type: int, float, str, a Literal, a tuple of texts; or None beside it.
        limits: the setting's metadata: `help`, `low`, `high`, `among`, `pattern`.
        where: place and key, for the message.

    Raises:
        UserError: it cannot be converted or is not allowed.
    """
    kind, optional = _without_none(hint)
    if optional and (value is None or str(value).strip().lower() in ("none", "null", "")):
        return None
    try:
        return _converted(value, kind, limits)
    except (TypeError, ValueError, OverflowError):
        words = _allowed(kind, limits) + (", or none" if optional else "")
        raise UserError(f"{where}: expected {words}; got {_shown(value, kind, limits)}") from None


def _without_none(hint: Any) -> tuple[Any, bool]:
    """A type without None, and whether it allowed None."""
    if NoneType not in get_args(hint):
        return hint, False
    return next(each for each in get_args(hint) if each is not NoneType), True


def _converted(value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    if value is None or isinstance(value, bool):
        raise TypeError
    if kind in (int, float):
        return _number(value, kind, limits)
    if get_origin(kind) is tuple:
        return _names(value, limits["among"])
    if not isinstance(value, str):
        raise TypeError
    text = value.strip()
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if not text or (choices and text not in choices):
        raise ValueError
    if limits["pattern"] and not re.fullmatch(limits["pattern"], text):
        raise ValueError
    return text


def _number(value: Any, kind: type[int] | type[float], limits: Mapping[str, Any]) -> int | float:
    number = kind(value)
    if isinstance(value, float) and number != value:
        raise ValueError
    low, high = limits["low"], limits["high"]
    at_least = float("-inf") if low is None else low
    if not at_least <= number <= (float("inf") if high is None else high):
        raise ValueError
    if number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _names(value: Any, among: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, str | list | tuple):
        raise TypeError
    items = value.split(",") if isinstance(value, str) else value
    names = tuple(str(name).strip() for name in items if str(name).strip())
    if not set(names) <= set(among):
        raise ValueError
    return names


def _allowed(kind: Any, limits: Mapping[str, Any]) -> str:
    """What a setting may be, in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "some of " + ", ".join(limits["among"]) + ", or an empty text for none"
    if kind is str:
        return limits["help"].split(";")[0] if limits["pattern"] else "text"
    low, high = limits["low"], limits["high"]
    span = f" from {low}" + (f" to {high}" if high is not None else "")
    return ("a whole number" if kind is int else "a number") + span


def _shown(value: Any, kind: Any, limits: Mapping[str, Any]) -> str:
    """A refused value, and the choice that its writer may have meant."""
    choices = get_args(kind) if get_origin(kind) is Literal else limits["among"]
    names = value if isinstance(value, list | tuple) else str(value).split(",")
    strange = [name for name in map(str, names) if name.strip() not in choices]
    return f"{value!r}{nearest(strange[0], choices) if choices and strange else ''}"
