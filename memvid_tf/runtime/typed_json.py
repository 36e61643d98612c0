"""JSON to frozen dataclasses and back, with every key and type checked.

Unknown, missing and repeated keys are refused by name, as are NaN, infinities and a bool where a
number is wanted, so that a damaged or foreign file cannot be half understood.
"""

import dataclasses
import functools
import json
import types
import typing
from typing import Any


class SchemaError(ValueError):
    """The text does not fit the dataclass. The message names the field and the bad value."""


def parse(text: str) -> Any:
    """Parses strict JSON.

    Raises:
      SchemaError: not JSON (with the place), a repeated key, or a NaN or infinity.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SchemaError(
            f"not valid JSON at line {error.lineno}, column {error.colno} of {len(text)} "
            f"characters: {error.msg}; the file may be cut short, copy or export it again"
        ) from error
    except SchemaError:
        raise
    except (RecursionError, ValueError) as error:
        raise SchemaError(f"not JSON of ours: {error}") from error


def decode(hint: Any, value: Any, where: str) -> Any:
    """Builds a value of type `hint` from parsed JSON.

    Args:
      hint: a dataclass, `bool`, `int`, `float`, `str`, `Any`, a union of these with None, a
        `dict[str, X]`, a `tuple[X, ...]` or a `tuple[X, Y]`. A dataclass whose JSON form is not
        its list of fields has a class method `decode_json(value, where)` and a method
        `encode_json()`.
      value: parsed JSON.
      where: the name of the field for messages; empty at the top.

    Raises:
      SchemaError: the value does not fit.
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return getattr(hint, "decode_json", functools.partial(decode_fields, hint))(value, where)
    if origin is dict:
        _require(isinstance(value, dict), where, value, "an object")
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        _require(isinstance(value, list), where, value, "a list")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        _require(len(value) == len(arguments), where, value, f"a list of {len(arguments)}")
        return tuple(
            decode(item_hint, item, f"{where}[{index}]")
            for index, (item_hint, item) in enumerate(zip(arguments, value))
        )
    if hint is float:
        _require(_is_number(value), where, value, "a number")
        return float(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    _require(
        fits, where, value, {int: "a whole number", str: "a string", bool: "true or false"}[hint]
    )
    return value


def decode_fields(cls: Any, value: Any, where: str) -> Any:
    """Builds the dataclass `cls` from an object that holds its fields and nothing else.

    Raises:
      SchemaError: an unknown or missing key, or a value that does not fit its field.
    """
    _require(isinstance(value, dict), where, value, "an object")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise SchemaError(f"unknown key {prefix + key!r}; allowed are {sorted(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise SchemaError(f"key {prefix + name!r} is missing")
    return cls(**{name: decode(hints[name], item, prefix + name) for name, item in value.items()})


def encode(value: Any) -> Any:
    """The JSON form of a dataclass, dict, tuple or plain value."""
    if hasattr(value, "encode_json"):
        return value.encode_json()
    if dataclasses.is_dataclass(value):
        return {
            field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    kinds = [argument for argument in arguments if argument is not type(None)]
    if set(kinds) == {int, float}:
        _require(_is_number(value), where, value, "a number")
        return value
    assert len(kinds) == 1, f"unsupported type of {where}: {arguments}"
    return decode(kinds[0], value, where)


def _is_number(value: Any) -> bool:
    # The range also refuses 1e999, which JSON reads as infinity, and integers beyond any float.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -1e300 < value < 1e300


def _require(fits: bool, where: str, value: Any, wanted: str) -> None:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise SchemaError(f"{where or 'the top level'} is {shown}, wanted {wanted}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise SchemaError(f"repeated key {repeated[0]!r}")
    return result


def _refuse_constant(name: str) -> Any:
    raise SchemaError(f"{name} is not a JSON number")
