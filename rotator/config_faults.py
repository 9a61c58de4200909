"""pydantic's errors as faults that a person can act on: our words, the line, and what may have been meant.

pydantic's own texts are never passed on: they repeat the input, which may be a secret in the wrong place (rule 6), and
speak of Python.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from rotator.config_file import Tree, Where
from rotator.config_types import nearest

MAPPING: Final = ("must be a mapping of names to values", "write `name: value` in lines of their own below it")
LIST: Final = ("must be a list", "write it like [first, second]")
WHOLE: Final = ("must be a whole number", "such as 10")
TRUE_OR_FALSE: Final = ("must be true or false", "write it without quotes")

# pydantic's error types that the models can give, in our words, with what to do; `{name}` is from the error's context.
WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "bool_parsing": TRUE_OR_FALSE,
    "bool_type": TRUE_OR_FALSE,
    "dict_type": MAPPING,
    "greater_than_equal": ("is too small", "at least {ge}"),
    "int_from_float": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": WHOLE,
    "int_type": WHOLE,
    "less_than_equal": ("is too large", "at most {le}"),
    "list_type": LIST,
    "literal_error": ("must be {expected}", "one of these"),
    "missing": ("is missing", "add it; config/rotator.yaml shows every setting"),
    "model_attributes_type": MAPPING,
    "model_type": MAPPING,
    "string_pattern_mismatch": ("holds characters that are not allowed here", "compare config/rotator.yaml"),
    "string_too_long": ("is too long", "at most {max_length} characters"),
    "string_too_short": ("must not be empty", "take it out, or give it a value"),
    "string_type": ("must be text", "put it in quotes"),
    "too_short": ("must not be empty", "write it like [first, second]"),
    "tuple_type": LIST,
    "union_tag_invalid": MAPPING,
    "union_tag_not_found": MAPPING,
}
# Said of an error type that is not in the table, which a test keeps from happening.
OTHER: Final = ("can't be used here", "compare config/rotator.yaml")


def add_faults(tree: Tree, exc: ValidationError, model: type[BaseModel]) -> None:
    """Put every error of `exc` into the tree's faults."""
    errors = exc.errors(include_url=False)
    for error in errors:
        if error["type"] == "too_short" and any(error["loc"] == other["loc"][:-1] for other in errors):
            continue  # pydantic counts only the items without a fault
        steps = [step for step in error["loc"] if step != "[key]"]
        where: Where = tuple(step for step in steps if not _is_tag(step))
        context = error.get("ctx", {})
        if error["type"] == "extra_forbidden":
            known = _known_names(model, steps[:-1])
            hint = nearest(str(steps[-1]), known) or f"known here: {', '.join(known)}"
            tree.fault(tree.place(where), f"unknown name `{dotted(where)}`", hint)
        elif error["type"] == "rotator":
            place = tree.place((*where, context["at"]) if context.get("at") else where)
            tree.fault(place, f"{dotted(where)}: {context['text']}", context.get("hint") or None)
        else:
            text, hint = WORDS.get(error["type"], OTHER)
            words = {name: str(value).replace("'", "") for name, value in context.items()}
            tree.fault(tree.place(where), f"{dotted(where)}: {text.format_map(words)}", hint.format_map(words))


def dotted(where: Where) -> str:
    """A position as people write it: `keys.building-a.consumers[0]`."""
    text = ""
    for step in where:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".") or "the configuration"


def _is_tag(step: object) -> bool:
    return isinstance(step, str) and step.startswith("<") and step.endswith(">")


def _known_names(model: type[BaseModel], steps: list[str | int]) -> list[str]:
    annotation: Any = model
    for step in steps:
        annotation = _below(annotation, step)
    found = _plain(annotation)
    return list(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def _below(annotation: Any, step: str | int) -> Any:
    """The annotation of what lies at `step` below a value of `annotation`."""
    annotation = _plain(annotation)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return next((arm for arm in get_args(annotation) if str(step) in _tags(arm)), annotation)
    if origin is dict:
        return get_args(annotation)[1]
    if origin is tuple:
        return get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return field.annotation if field is not None else None
    return None


def _plain(annotation: Any) -> Any:
    """`annotation` without what pydantic adds to it, and without `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            arms = [arm for arm in get_args(annotation) if arm is not type(None)]
            if len(arms) > 1:
                return annotation
            annotation = arms[0]
        else:
            return annotation


def _tags(annotation: Any) -> list[str]:
    added = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return [mark.tag for mark in added if isinstance(mark, Tag)]
