"""Between configurations and text: the options of the command line.

The options are the fields of a dataclass, their help the strings under the fields. A field that
holds a function has a spelling: ``warmup:10`` is ``Warmup(10)``. The same spellings stand in the
``config.json`` of a run, so that a run can be built again from its folder.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from vaetutor.gradients import doubly_reparameterised, sticking_the_landing
from vaetutor.objectives import elbo, elbo_terms, iwae
from vaetutor.recipes import ModelConfig
from vaetutor.train import Cyclic, Objective, TrainConfig, Warmup

T = TypeVar("T")

OBJECTIVES: dict[str, Objective] = {
    "elbo_terms": elbo_terms,
    "elbo": elbo,
    "iwae": iwae,
    "stl": sticking_the_landing,
    "dreg": doubly_reparameterised,
}
SCHEDULES = {"warmup": Warmup, "cyclic": Cyclic}


# --- spellings --------------------------------------------------------------------------------


def _objective(text: str) -> Objective:
    if text not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, found {text!r}")
    return OBJECTIVES[text]


def _beta(text: str) -> float | Callable[[float], float]:
    name, *numbers = text.split(":")
    if name not in SCHEDULES:
        return float(text)
    try:
        return SCHEDULES[name](
            *(float(n) if set(n) - set("0123456789") else int(n) for n in numbers)
        )
    except TypeError as error:
        known = ":".join(f.name for f in fields(SCHEDULES[name]))
        raise ValueError(f"beta must have the form {name}:{known}, found {text!r}") from error


def _learning_rate(text: str) -> float | Callable[[float], float]:
    from vaetutor.reproduce import burda_rate

    return burda_rate if text == "burda" else float(text)


def _device(text: str) -> str:
    try:
        return str(torch.device(text))
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1 or mps, found {text!r}") from error


SPELLINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "objective": (f"{{{','.join(OBJECTIVES)}}}", _objective),
    "beta": ("FLOAT|warmup:EPOCHS|cyclic:EPOCHS", _beta),
    "learning_rate": ("FLOAT|burda", _learning_rate),
    "device": ("DEVICE", _device),
}
"""Form and reader of each field that is not a plain number or word."""


def spell(config: ModelConfig | TrainConfig) -> dict[str, Any]:
    """A configuration as JSON holds it, by the names of the fields.

    Raises:
        ValueError: for a function without a spelling.
    """
    return {f.name: _spelled(f.name, getattr(config, f.name)) for f in fields(config)}


def unspell(kind: type[T], values: dict[str, Any]) -> T:
    """The configuration that :func:`spell` wrote; what it does not mention has its default.

    Raises:
        ValueError: for a name that is no field, or a value that it refuses.
    """
    unknown = set(values) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    read = {name: _unspelled(name, value) for name, value in values.items()}
    return kind(**read)


def _spelled(name: str, value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Warmup | Cyclic):
        kind = next(key for key, schedule in SCHEDULES.items() if type(value) is schedule)
        parts = [(getattr(value, f.name), f.default) for f in fields(value)]
        while parts[-1][0] == parts[-1][1]:
            parts.pop()
        numbers = [int(part) if part == int(part) else part for part, _ in parts]  # 10.0 is 10
        return ":".join(map(str, [kind, *numbers]))
    if callable(value):
        known = {**OBJECTIVES, "burda": _learning_rate("burda")}
        for spelling, function in known.items():
            if value is function:
                return spelling
        raise ValueError(
            f"{name} must have a spelling, one of {', '.join(known)}, found {value!r}"
        )
    if isinstance(value, torch.device):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _unspelled(name: str, value: Any) -> Any:  # noqa: ANN401
    if name in SPELLINGS and value is not None:
        return SPELLINGS[name][1](str(value))
    return tuple(value) if isinstance(value, list) else value


# --- options ----------------------------------------------------------------------------------


def add_options(parser: ArgumentParser, kind: type) -> None:
    """One option for each field of a dataclass, with its type, choices, default and meaning."""
    group = parser.add_argument_group(
        f"{kind.__name__}", inspect.cleandoc(kind.__doc__ or "").split("\n")[0]
    )
    hints, meaning = get_type_hints(kind), field_docs(kind)
    for field in fields(kind):
        default = _spelled(field.name, field.default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text = meaning[field.name] + ("" if default is None else f" [{shown}]")
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=field.default,
            help=text.replace("%", "%%"),
            **_form(field.name, hints[field.name]),
        )


def configured(kind: type[T], options: Namespace) -> T:
    """The configuration that the options describe."""
    given = {f.name: getattr(options, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def field_docs(kind: type) -> dict[str, str]:
    """What stands under each field of a dataclass, without its markup."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            plain = re.sub(r":\w+:`[~.]*([^`]*)`", r"\1", ast.literal_eval(text.value))
            found[ast.unparse(field.target)] = " ".join(plain.replace("`", "").split())
    return found


def _form(name: str, hint: Any) -> dict[str, Any]:  # noqa: ANN401
    """How argparse reads a field."""
    if name in SPELLINGS:
        return {"metavar": SPELLINGS[name][0], "type": _reader(SPELLINGS[name][1])}
    if get_origin(hint) not in (Literal, tuple) and get_args(hint):
        hint = get_args(hint)[0]  # of `int | None`
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"type": int, "nargs": "*", "metavar": "INT"}
    if hint is bool:
        return {"action": BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """The same, with an error whose text argparse passes on."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return checked
