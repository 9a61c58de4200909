"""The configuration as text: YAML files and environment variables, merged into one tree that knows its lines.

PyYAML's loader forgets where a value stood and lets the second of two equal names win in silence, so its nodes are
read here; pydantic-settings' environment source can't say which variable a value came from, nor find `HALTIAN_EU` under
the name `haltian-eu`, so the variables are laid over the tree here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from rotator.errors import Fault

PREFIX: Final = "ROTATOR__"
DELIMITER: Final = "__"
KEYS_FOLDER: Final = "keys.d"
MERGE: Final = "tag:yaml.org,2002:merge"

# Below these, new names are taken as they are written: the environment variables of a command.
KEEPS_CASE: Final = (("consumers", "*", "env"),)

Where = tuple[str | int, ...]  # a path into the tree, such as ("keys", "building-a", "consumers", 0)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a piece of configuration was written. Orders as a person reads: files first, then the environment."""

    rank: int
    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(slots=True)
class Tree:
    """Plain data with the place of every part, and the faults found while reading."""

    root: dict[str, Any] = field(default_factory=dict)
    places: dict[Where, Place] = field(default_factory=dict)
    faults: list[tuple[Place, Fault]] = field(default_factory=list)
    readable: bool = True

    def place(self, where: Where) -> Place:
        """The place of the nearest part at or above `where`."""
        for length in range(len(where), -1, -1):
            if (place := self.places.get(where[:length])) is not None:
                return place
        return Place(0, "configuration")

    def get(self, where: Where) -> Any:
        """The value at `where`, through mappings only; None where there is none."""
        value: Any = self.root
        for step in where:
            value = value.get(step) if isinstance(value, dict) else None
        return value

    def table(self, name: str) -> dict[str, Any]:
        """The mapping at the top level's `name`; empty where there is none."""
        found = self.root.get(name)
        return found if isinstance(found, dict) else {}

    def fault(self, place: Place, message: str, suggestion: str | None = None) -> None:
        """Remember a fault; the same one is kept once."""
        fresh = (place, Fault(str(place), message, suggestion))
        if all((place, message) != (known, fault.message) for known, fault in self.faults):
            self.faults.append(fresh)

    def sorted_faults(self) -> list[Fault]:
        """All faults in the order of the files' lines."""
        return [fault for _place, fault in sorted(self.faults, key=lambda item: item[0])]

    def move(self, source: Where, target: Where) -> None:
        """Carry the places below `source` over to `target`; the data itself is the caller's."""
        for where in [where for where in self.places if where[: len(source)] == source]:
            self.places[target + where[len(source) :]] = self.places.pop(where)

    def forget(self, where: Where) -> None:
        """Drop the places at and below `where`, because something else is written there now."""
        for old in [old for old in self.places if old[: len(where)] == where]:
            del self.places[old]


def read_files(path: Path) -> Tree:
    """The main file and `keys.d/*.yaml` beside it, as one tree. Never raises: faults are in the tree.

    `readable` is False when the main file could not be read as YAML, so that nothing more can be said about it.
    """
    tree = Tree()
    main = _File(tree, path, path.name, 0)
    loaded = main.load()
    tree.readable = loaded is not None
    tree.root = loaded or {}
    folder = path.parent / KEYS_FOLDER
    found = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    # Editors leave hidden files behind, and Kubernetes mounts its ConfigMaps through hidden links.
    for rank, extra in enumerate((file for file in found if not file.name.startswith(".")), start=1):
        _add_keys(tree, extra, rank)
    return tree


def _add_keys(tree: Tree, path: Path, rank: int) -> None:
    part = Tree(faults=tree.faults)
    loaded = _File(part, path, f"{KEYS_FOLDER}/{path.name}", rank).load()
    if loaded is None:
        return
    for name in loaded:
        if name != "keys":
            tree.fault(part.place((name,)), f"unknown name `{name}`", "a file in keys.d holds `keys:` and nothing else")
    fresh = loaded.get("keys")
    if not isinstance(fresh, dict):
        if "keys" in loaded or not loaded:
            tree.fault(part.place(("keys",)), "`keys` must be a mapping of names to keys", "see config/keys.d")
        return
    known = tree.root.setdefault("keys", {})
    if not isinstance(known, dict):
        if known is not None:  # `keys:` with nothing below it is an empty mapping, as people write it
            return
        known = tree.root["keys"] = {}
    for name, value in fresh.items():
        where = ("keys", name)
        if name in known:
            tree.fault(part.place(where), f"`{name}` is written twice", f"first at {tree.place(where)}")
            continue
        known[name] = value
        tree.places.setdefault(("keys",), part.place(("keys",)))
        tree.places.update({below: place for below, place in part.places.items() if below[:2] == where})


class _File:
    """One YAML file on its way into a tree."""

    def __init__(self, tree: Tree, path: Path, name: str, rank: int) -> None:
        self._tree, self._path, self._name, self._rank = tree, path, name, rank
        self._open: set[int] = set()  # the nodes that are being read: an alias to one of them is endless
        self._loader = yaml.SafeLoader("")

    def load(self) -> dict[str, Any] | None:
        """The file's mapping, {} for an empty file, None (and a fault) where it can't be read as a mapping."""
        line, message, hint = 0, "", ""
        try:
            return self._mapping_of(yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
        except OSError as exc:
            reason = "there is no such file" if isinstance(exc, FileNotFoundError) else exc.strerror
            message, hint = f"can't read {self._path}: {reason}", "name the file with --config"
        except UnicodeDecodeError:
            message, hint = "is not UTF-8 text", "save it as UTF-8"
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line = mark.line + 1 if mark else 0
            message, hint = f"is not YAML: {_problem(exc)}", "look at the indentation, quotes and brackets before it"
        except yaml.YAMLError:
            message, hint = "is not YAML: it holds characters that YAML does not allow", "save it as plain text"
        except RecursionError:
            message, hint = "is nested too deeply", "see config/rotator.yaml"
        self._tree.fault(self._at(line), message, hint)
        return None

    def _mapping_of(self, node: yaml.Node | None) -> dict[str, Any] | None:
        self._tree.places[()] = self._at(1)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._tree.fault(self._at(1), "must be a mapping of names to settings", "see config/rotator.yaml")
            return None
        found: dict[str, Any] = self._value(node, ())
        return found

    def _at(self, line: int) -> Place:
        return Place(self._rank, self._name, line)

    def _line(self, node: yaml.Node) -> Place:
        return self._at(node.start_mark.line + 1)

    def _value(self, node: yaml.Node, where: Where) -> Any:
        self._tree.places.setdefault(where, self._line(node))
        if id(node) in self._open:
            self._tree.fault(self._line(node), "an alias leads back into itself", "write the value out")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, where)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(item, (*where, index)) for index, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError):  # an unknown tag; a date such as 2024-13-45
            self._tree.fault(self._line(node), "this value can't be read", "put it in quotes")
            return None

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        # Merges first, so that what the mapping says itself wins, with its own line, wherever the `<<` stands.
        for key, value in sorted(node.value, key=lambda pair: bool(pair[0].tag != MERGE)):
            if key.tag == MERGE:
                self._merge(value, where, merged)
                continue
            name = self._scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                self._tree.fault(self._line(key), "a name must be text", "put it in quotes")
                continue
            if name in own:
                first = self._tree.place((*where, name))
                self._tree.fault(self._line(key), f"`{name}` is written twice", f"first at {first}")
                continue
            if name in merged:
                self._tree.forget((*where, name))
            self._tree.places[(*where, name)] = self._line(key)
            own[name] = self._value(value, (*where, name))
        return merged | own

    def _merge(self, node: yaml.Node, where: Where, into: dict[str, Any]) -> None:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                self._tree.fault(self._line(source), "`<<` takes a mapping, or a list of mappings", "such as <<: *name")
                continue
            for name, value in self._value(source, where).items():
                into.setdefault(name, value)


def _problem(exc: yaml.MarkedYAMLError) -> str:
    # Not str(exc), which quotes the line, and no name of an alias: `password: *x` may be a password that needs quotes.
    problem = exc.problem or ""
    if problem.startswith("found undefined alias"):
        problem = "an alias (`*name`) whose anchor is not there; a value that starts with `*` needs quotes"
    return ", ".join(part for part in (exc.context, problem) if part)


def overlay(tree: Tree, environ: Mapping[str, str], *, top: Collection[str], references: Collection[Where]) -> None:
    """Lay the environment's `ROTATOR__…` variables over the tree; they win over the files.

    Names match without regard to case, and `_` stands for `-` or `.` where that finds a name of the files. Values that
    are JSON lists or objects, or `null`, count as such; all else is text, and the models turn it into what they need.

    Args:
        tree: what the files said; changed.
        environ: the environment.
        top: the names of the top level, so that `ROTATOR__SHUTDOWN_GRACE` is found although no file has it.
        references: the positions of secret references (`*` for any name); there a new kind replaces the old one,
            since a reference has exactly one.
    """
    # A whole section given as JSON comes before a single value of it: a shorter name sorts first.
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX):
            continue
        segments = variable[len(PREFIX) :].split(DELIMITER)
        place = Place(1_000_000, f"environment {variable}")
        if not all(segments):
            tree.fault(place, "holds an empty name", f"write it like {PREFIX}VAULT{DELIMITER}URL")
            continue
        try:
            where = _resolve(tree, segments, top)
        except ValueError as exc:
            tree.fault(place, str(exc), "change this one in the file")
            continue
        if where[:-1] and _matches(where[:-1], references):
            _set(tree, where[:-1], {}, place)
        _set(tree, where, _decode(environ[variable]), place)


def _resolve(tree: Tree, segments: list[str], top: Collection[str]) -> Where:
    """The position that the segments of a variable's name mean. Raises: ValueError where they fit several."""
    where: Where = ()
    for segment in segments:
        known = tree.get(where)
        names = {*(known if isinstance(known, dict) else ()), *(top if not where else ())}
        if _matches(where, KEEPS_CASE) and segment not in names:
            where = (*where, segment)
        else:
            where = (*where, _name(segment.lower(), names))
    return where


def _name(segment: str, names: Collection[str]) -> str:
    exact = sorted(name for name in names if name.lower() == segment)
    loose = sorted(name for name in names if name.lower().replace("-", "_").replace(".", "_") == segment)
    found = exact or loose or [segment]
    if len(found) > 1:
        raise ValueError(f"`{segment}` fits {' and '.join(found)}")
    return found[0]


def _matches(where: Where, patterns: Collection[Where]) -> bool:
    return any(
        len(pattern) == len(where) and all(p in ("*", w) for p, w in zip(pattern, where, strict=True))
        for pattern in patterns
    )


def _set(tree: Tree, where: Where, value: Any, place: Place) -> None:
    node = tree.root
    for length, step in enumerate(where[:-1], start=1):
        below = node.get(str(step))
        if not isinstance(below, dict):
            below = node[str(step)] = {}
            tree.forget(where[:length])
            tree.places[where[:length]] = place
        node = below
    node[str(where[-1])] = value
    tree.forget(where)
    tree.places[where] = place


def _decode(text: str) -> Any:
    if text == "null":
        return None
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except ValueError:
            return text  # a template such as `{secret}` starts like this too
    return text


def walk(tree: Tree, patterns: Collection[Where]) -> Iterator[tuple[Where, Any]]:
    """Every value at a position that one of `patterns` describes (`*` for any name), with its position."""
    for pattern in patterns:
        yield from _below(tree.root, pattern, ())


def _below(value: Any, pattern: Where, where: Where) -> Iterator[tuple[Where, Any]]:
    if not pattern:
        yield where, value
    elif isinstance(value, dict):
        for name in value if pattern[0] == "*" else [pattern[0]]:
            if name in value:
                yield from _below(value[name], pattern[1:], (*where, name))
