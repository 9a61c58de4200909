"""The house: dependencies run one way, libraries stay in their rooms, and names say what a thing is.

Read from the source by AST, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import rotator

ROOT = Path(rotator.__file__).parent
ADAPTERS = ("providers", "stores", "consumers", "sandbox")
PURE = (
    "policy",
    "rotation",
    "lifecycle",
    "batches",
    "keys",
    "durations",
    "templates",
    "timestamps",
    "model",
    "errors",
    "reasons",
)

# Library → the places that may import it: a module, or a folder with a slash.
ROOMS = {
    "hvac": {"stores/"},
    "httpx": {"providers/", "consumers/", "confirmation", "consuming", "keymaking", "client", "sandbox/", "app"},
    "paho": {"mqtt", "sandbox/"},
    "amqtt": {"sandbox/"},
    "graphql": {"sandbox/"},
    "jmespath": {"providers/expressions"},
    "apscheduler": {"daemon"},
    "sqlalchemy": {"journal/"},
    "alembic": {"journal/"},
    "cryptography": {"journal/", "sandbox/"},
    "typer": {"cli", "cli_platform", "cli_seal", "sandbox/"},
    "rich": {"cli", "cli_output", "cli_seal", "sandbox/"},
    "jeepney": {"consumers/systemd"},
    "lightkube": {
        "consumers/kubernetes",
        "consumers/kubernetes_client",
        "consumers/kubernetes_login",
        "consumers/kubernetes_rollout",
        "consumers/kubernetes_wire",
    },
    "httpx2": {"consumers/kubernetes_client", "consumers/kubernetes_wire"},
    "msgspec": {"consumers/kubernetes_client", "consumers/kubernetes_login"},
    "uvicorn": {"web/", "sandbox/"},
    "starlette": {"web/", "sandbox/", "app"},
    "jinja2": {"web/"},
    "cronsim": {"policy", "config_types"},
    "prometheus_client": {"metrics", "web/", "app"},
}

# What a part of the house may import of the others; `cli → app → daemon → engine → lifecycle, policy → model`.
FORBIDDEN = {
    "engine": {"app", "cli", "daemon", "control", "web", "metrics", "watcher", *ADAPTERS},
    "steps": {"app", "cli", "daemon", "control", "web", "metrics", "watcher", "engine", *ADAPTERS},
    "watcher": {"app", "cli", "daemon", "control", "web", "metrics", *ADAPTERS},
    "daemon": {"app", "cli", "control", "web", "settings", *ADAPTERS},
    "control": {"app", "cli", "daemon", "web", "metrics", *ADAPTERS},
    "ports": {"app", "cli", "daemon", "engine", "journal", "settings", *ADAPTERS},
    "app": {"cli", "sandbox"},
    "web": {"app", "cli", "daemon", "engine", "journal", "settings", *ADAPTERS},
    "journal": {"app", "cli", "daemon", "engine", "steps", "watcher", "settings", *ADAPTERS},
    **{
        adapter: {"app", "cli", "daemon", "engine", "steps", "watcher", "control", "journal", "web", "lifecycle"}
        | (set(ADAPTERS) - {adapter})
        for adapter in ADAPTERS
    },
}

# Not a module of this house imports these for I/O where it must be pure.
IO_LIBRARIES = {
    *ROOMS.keys() - {"cronsim"},
    "asyncio",
    "fcntl",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
}


def modules() -> list[str]:
    """All modules below rotator/, by path without the ending: `engine`, `journal/seal`, `stores/__init__`."""
    return sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.py"))


MODULES = modules()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Absolute names of what a module imports, `from a import b` as `a.b`."""
    package = ["rotator", *module.split("/")[:-1]]
    for node in ast.walk(tree(module)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                base = ".".join(package[: len(package) - level + 1]) if level else ""
                start = ".".join(part for part in (base, name) if part)
                yield from (f"{start}.{alias.name}" for alias in names)


@cache
def own_imports(module: str) -> set[str]:
    """Of rotator's own: the first name below the package (`journal` for `rotator.journal.seal`)."""
    return {name.split(".")[1] for name in imports(module) if name.startswith("rotator.")}


@cache
def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def is_in(module: str, place: str) -> bool:
    return module.startswith(place) if place.endswith("/") else module == place


def test_the_house_is_seen_whole() -> None:
    """The walk finds the modules that the rules are about; a rule about nothing would hold for ever."""
    assert {"cli", "app", "daemon", "engine", "journal/seal", "stores/vault", "web/server"} <= set(MODULES)
    assert set(PURE) <= set(MODULES)
    for library, places in ROOMS.items():
        users = [module for module in MODULES if library in libraries(module)]
        assert users, library
        assert [] == [place for place in places if not any(is_in(module, place) for module in MODULES)], library
    assert {"journal", "errors"} <= own_imports("engine")


@pytest.mark.parametrize("library", ROOMS)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    """hvac in stores/, apscheduler in the daemon, …: the rest of the house would not notice another one."""
    users = [module for module in MODULES if library in libraries(module)]
    assert [] == [module for module in users if not any(is_in(module, place) for place in ROOMS[library])]


@pytest.mark.parametrize("part", FORBIDDEN)
def test_dependencies_run_one_way(part: str) -> None:
    """Adapters know neither one another nor the engine; only `app` sees both sides."""
    mine = [module for module in MODULES if module == part or module.startswith(f"{part}/")]
    assert mine
    wrong = {module: bad for module in mine if (bad := own_imports(module) & FORBIDDEN[part])}
    if part == "sandbox":
        wrong.pop("sandbox/demo", None)  # the demo runs the whole program: that is what it is for
    assert {} == wrong


def test_only_the_edges_know_the_composition_root() -> None:
    """`app` is imported by what starts the program, and by nothing that it wires."""
    users = {module for module in MODULES if "app" in own_imports(module)}
    assert users <= {"cli", "cli_platform", "cli_seal", "foreground", "online", "__main__"}


@pytest.mark.parametrize("module", ["lifecycle", "policy"])
def test_the_machine_and_the_policy_stand_on_facts_alone(module: str) -> None:
    """Model, reasons, errors, durations, the record of a rotation: nothing else of the house."""
    assert own_imports(module) <= {"model", "reasons", "errors", "durations", "rotation", "frozen", "batches"}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_no_io(module: str) -> None:
    """Time, files, sockets, threads and dice stay outside."""
    assert set() == libraries(module) & IO_LIBRARIES
    assert set() == own_imports(module) & {"journal", "engine", "steps", "watcher", "ports", "settings", *ADAPTERS}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_read_no_clock_and_open_no_file(module: str) -> None:
    """Time is an argument (style)."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    impure = re.compile(r"(^|\.)(now|utcnow|today|open|print|input|getenv)$|^(time|os|random)\.")
    assert [] == [call for call in calls if impure.search(call)]


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("sandbox/")])
def test_the_wall_clock_is_read_at_the_edges_only(module: str) -> None:
    """`Clock` everywhere else: a test must be able to set the time."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    reads = [call for call in calls if re.search(r"datetime\.(now|utcnow|today)$|^time\.time$", call)]
    assert reads == [] or module in {"clock", "cli", "cli_output", "reading"}


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m not in {"cli", "cli_output"} and not m.startswith("sandbox/")]
)
def test_only_the_commands_print(module: str) -> None:
    """Standard output belongs to `cli` (and the sandbox's own programs), and so do exit codes."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    assert [] == [call for call in calls if call in {"print", "sys.stdout.write", "sys.exit", "os._exit", "exit"}]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    """A docstring, of one sentence at least."""
    assert len((ast.get_docstring(tree(module)) or "").split()) >= 3


@pytest.mark.parametrize("module", MODULES)
def test_names_say_what_a_thing_is(module: str) -> None:
    """No utils, manager, handler or helper: a noun of the trade is there for each."""
    vague = re.compile(r"(?i)utils?|manager|handler|helper")
    classes = [node.name for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    assert [] == [name for name in (*module.split("/"), *classes) if vague.search(name)]


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether a handler swallows faults that nobody foresaw; one that raises them again does not."""
    named = re.findall(r"\w+", ast.unparse(handler.type)) if handler.type is not None else ["BaseException"]
    again = any(isinstance(node, ast.Raise) and node.exc is None for node in handler.body)
    return bool({"Exception", "BaseException"} & set(named)) and not again


def test_exception_is_caught_where_a_key_is_parked_and_nowhere_else() -> None:
    """Everywhere else the errors that are meant are named; the writer hands its callers' faults back to them."""
    broad = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node) and not module.startswith("sandbox/")
    }
    assert broad <= {"engine", "journal/writer"}
    assert "engine" in broad
