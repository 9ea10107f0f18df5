"""`--set optim.lr=1e-4`: replace single fields of a recipe, which is a tree of frozen dataclasses."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lexitome.errors import InputError

R = TypeVar("R")
_NONE = ("none", "null")


def override(recipe: R, assignments: Sequence[str]) -> R:
    """The recipe with fields replaced.

    Args:
        assignments: "path.to.field=value"; tuples are written with commas ("0.9,0.999"), nothing as "none".

    Raises:
        InputError: no such field (the message lists those there are), or the value is not of its type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InputError("--set", f"{assignment!r} has no '='", "Write --set optim.lr=1e-4.")
        recipe = _replaced(recipe, path.strip().split("."), text.strip(), path.strip())
    return recipe


def _replaced(value: Any, path: list[str], text: str, whole: str) -> Any:
    hints = get_type_hints(type(value))
    names = [f.name for f in fields(value) if f.init]
    head, rest = path[0], path[1:]
    if head not in names:
        near = difflib.get_close_matches(head, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Fields there: {', '.join(names)}."
        raise InputError("--set", f"{whole!r}: the recipe has no {head!r}", hint)
    if not rest:
        if is_dataclass(getattr(value, head)):
            inner = ", ".join(f"{whole}.{f.name}" for f in fields(getattr(value, head)))
            raise InputError("--set", f"{whole!r} is a group of settings", f"Set one of {inner}.")
        return replace(value, **{head: _parsed(text, hints[head], whole)})
    if not is_dataclass(getattr(value, head)):
        raise InputError(
            "--set", f"{whole!r}: {head!r} has no fields", f"Set {'.'.join(whole.split('.')[: -len(rest)])}."
        )
    return replace(value, **{head: _replaced(getattr(value, head), rest, text, whole)})


def _parsed(text: str, kind: Any, whole: str) -> Any:
    """`text` as a value of type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() in _NONE:
            return None
        return _parsed(text, next(a for a in arguments if a is not type(None)), whole)
    if origin is Literal:
        if text not in [str(a) for a in arguments]:
            raise _mismatch(text, whole, f"one of {', '.join(map(str, arguments))}")
        return next(a for a in arguments if str(a) == text)
    if origin is tuple:
        return _parsed_tuple(text, arguments, whole)
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise _mismatch(text, whole, "true or false")
        return _TRUTH[text.lower()]
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            raise _mismatch(text, whole, {int: "a whole number", float: "a number"}[kind]) from None
    raise InputError("--set", f"{whole!r} cannot be set from the command line", "Write a recipe in Python.")


def _parsed_tuple(text: str, arguments: tuple[Any, ...], whole: str) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_parsed(part, arguments[0], whole) for part in parts)
    if len(parts) != len(arguments):
        raise _mismatch(text, whole, f"{len(arguments)} values with commas between them")
    return tuple(_parsed(part, kind, whole) for part, kind in zip(parts, arguments, strict=True))


_TRUTH: Mapping[str, bool] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _mismatch(text: str, whole: str, wanted: str) -> InputError:
    return InputError("--set", f"{whole}={text!r} is not {wanted}", f"Write --set {whole}=VALUE with {wanted}.")
