"""The commands. The only place that prints, and the only one that chooses an exit code.

Exit codes (contract): 0 well · 1 it failed · 2 usage or configuration · 3 something needs a person.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rotator import __version__
from rotator.cli_output import (
    err,
    escaped,
    out,
    print_json,
    say_error,
    say_os_error,
    say_rotation,
    short,
    show_failing,
    show_key,
    show_keys,
    show_status,
)
from rotator.cli_platform import discover, provision, retire
from rotator.cli_seal import backup, seal
from rotator.client import Client, NoDaemon, find_daemon
from rotator.errors import ConfigError, JournalFailed, JournalLocked, RotatorError
from rotator.model import Secret
from rotator.settings import Settings, json_schema, load, notices

FAILED, USAGE, PERSON = 1, 2, 3
DEFAULT_CONFIG = Path("/etc/rotator/rotator.yaml")

cli = typer.Typer(
    name="rotator",
    help="Keeps MQTT credentials fresh: watches expiry, refreshes, writes to Vault, restarts consumers, proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback with local variables could show a secret (rule 6)
)
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="ROTATOR_CONFIG", help="The configuration file.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
UrlOption = Annotated[str | None, typer.Option("--url", help="Ask the daemon at this URL, with the admin token.")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="File with the admin token, for --url.")]
LevelOption = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.", envvar="ROTATOR_LOG")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's name in the configuration.")]


def main() -> None:
    """The console script."""
    try:
        cli()
    except ConfigError as exc:
        for fault in exc.faults:
            err.print(f"[red]{escaped(str(fault))}[/red]", highlight=False, soft_wrap=True)
        plural = "s" if len(exc.faults) != 1 else ""
        err.print(f"{len(exc.faults)} fault{plural} in the configuration", highlight=False)
        raise SystemExit(USAGE) from None
    except JournalFailed as exc:
        say_error(exc)
        raise SystemExit(USAGE if exc.reason.value.startswith("seal_") else FAILED) from None
    except RotatorError as exc:
        say_error(exc)
        raise SystemExit(FAILED) from None
    except OSError as exc:
        say_os_error(exc)
        raise SystemExit(FAILED) from None


@cli.command()
def run(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = "info") -> None:
    """Run the daemon until SIGTERM."""
    from rotator.app import listen

    with _application(config, log_level) as app, ExitStack() as stack:
        import structlog

        log = structlog.get_logger("rotator")
        for notice in notices(app.settings):
            log.warning("notice", detail=notice)
        host, port = listen(app, stack)
        log.info(
            "started", version=__version__, keys=len(app.engine.keys), mode=app.settings.mode, listen=f"{host}:{port}"
        )
        app.daemon.start()
        app.daemon.run_until_signalled()


@cli.command()
def once(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False, log_level: LevelOption = "info") -> None:
    """Rotate what is due now, then exit."""
    from rotator.foreground import run_once

    with _application(config, log_level) as app:
        failed = run_once(app)
        views = app.control.keys()
    show_keys(views, as_json)
    raise typer.Exit(FAILED if failed else _person(views))


@cli.command()
def check(
    config: ConfigOption = DEFAULT_CONFIG,
    online: Annotated[bool, typer.Option("--online", help="Also try every login, path and broker.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate the configuration, all faults at once."""
    settings = _load(config)
    found: list[dict[str, Any]] = []
    if online:
        from rotator.online import check_online

        found = check_online(settings)
    bad = [item for item in found if not item["ok"]]
    if as_json:
        counts = {"keys": len(settings.keys), "selections": len(settings.selections)}
        print_json({"ok": not bad, **counts, "notices": notices(settings), "checks": found})
    else:
        for notice in notices(settings):
            out.print(f"[yellow]note[/yellow] {escaped(notice)}", highlight=False, soft_wrap=True)
        for item in found:
            mark = "[green]ok[/green]  " if item["ok"] else "[red]no[/red]  "
            out.print(f"{mark}{escaped(item['what'])}  {escaped(item['detail'])}", highlight=False, soft_wrap=True)
        count = len(settings.selections)
        selected = f" and {count} selection{'' if count == 1 else 's'}" if count else ""
        well = "well" if not bad else f"{len(bad)} checks failed"
        out.print(f"{config}: {len(settings.keys)} keys{selected}, {well}")
    raise typer.Exit(FAILED if bad else 0)


@cli.command()
def status(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="One key, with its history.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """How the keys are; exit 3 when one of them needs a person."""
    with _reader(config, url, token_file) as reader:
        views = [reader.key(key)] if key is not None else reader.keys()
        checks = reader.checks()
    if key is None:
        show_status(views, checks, as_json)
    else:
        show_key(views[0], as_json)
        show_failing({} if as_json else checks)
    broken = not checks.get("journal", {"ok": True})["ok"]  # all that the daemon does waits for a person then
    raise typer.Exit(PERSON if broken else _person(views))


@cli.command()
def history(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """The last rotations."""
    with _reader(config, url, token_file) as reader:
        found = reader.rotations(key)
    if as_json:
        print_json({"rotations": found})
        return
    table = Table("key", "started", "why", "result", "reason", "Vault")
    for item in found:
        version = f"v{item['vault_version']}" if item["vault_version"] else ""
        outcome = item["result"] or f"at {item['step']}"
        table.add_row(item["key"], short(item["started_at"]), item["trigger"], outcome, item["reason"] or "", version)
    out.print(table)


TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for the rotation's end.")]
OneKey = Annotated[str | None, typer.Argument(metavar="[KEY]", help="The key's name in the configuration.")]
AllOption = Annotated[bool, typer.Option("--all", help="All keys instead of one.")]


@cli.command()
def rotate(
    key: KeyArgument,
    now: Annotated[bool, typer.Option("--now", help="Ignore windows, min_interval, quarantine and a pause.")] = False,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="As --now, and the old secret gets no grace period.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 300.0,
    log_level: LevelOption = "warning",
) -> None:
    """Rotate one key: in its windows, or now."""
    body = {"now": now or compromised, "compromised": compromised}
    ended = _follow(config, url, token_file, key, "rotate", body, timeout, log_level)
    print_json(ended) if as_json else say_rotation(key, ended)
    well = ended.get("result") == "succeeded" or ended.get("held") or (ended.get("resting") and not ended.get("result"))
    raise typer.Exit(0 if well else FAILED)


@cli.command()
def rollback(
    key: KeyArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = 300.0,
    log_level: LevelOption = "warning",
) -> None:
    """Take a rotation back: the old secret counts again, and consumers run on it. Not for keys issued in place."""
    ended = _follow(config, url, token_file, key, "rollback", {}, timeout, log_level)
    print_json(ended) if as_json else say_rotation(key, ended)
    restored = ended.get("trigger") == "rollback_requested" and ended.get("result") == "succeeded"
    raise typer.Exit(0 if ended.get("result") == "rolled_back" or restored else FAILED)


@cli.command()
def confirm(
    key: KeyArgument,
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="The consumer's name in the configuration.")],
    config: ConfigOption = DEFAULT_CONFIG,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Say that you have seen a consumer run on the current secret, where nothing else proves it."""
    _act(config, url, token_file, key, "confirm", {"consumer": consumer})
    out.print(f"{key}: {consumer} is confirmed", highlight=False)


@cli.command()
def pause(
    key: OneKey = None,
    everything: AllOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Begin no rotation of a key until it is resumed, unless somebody asks with `rotate --now`."""
    for name in _named(config, key, everything=everything):
        _act(config, url, token_file, name, "pause")
        out.print(f"{name} is paused", highlight=False)


@cli.command()
def resume(
    key: OneKey = None,
    everything: AllOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Take back a pause, a quarantine or a hold."""
    for name in _named(config, key, everything=everything):
        _act(config, url, token_file, name, "resume")
        out.print(f"{name} is resumed", highlight=False)


@cli.command()
def recover(
    key: OneKey = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    log_level: LevelOption = "warning",
) -> None:
    """Write sealed secrets that never reached Vault there. For when the daemon does not run: it does this by itself."""
    from rotator.control import NoSuchKey
    from rotator.recovery import Recovery

    with _application(config, log_level) as app:
        if key is not None and key not in app.engine.keys:
            raise NoSuchKey(key)
        found = Recovery(engine=app.engine).recover(key)
    if as_json:
        print_json({"secrets": found})
    elif not found:
        out.print("no sealed secret waits", highlight=False)
    for item in [] if as_json else found:
        mark = "[green]ok[/green]" if item["ok"] else f"[red]no[/red] {item['reason']}:"
        out.print(f"{mark} {item['key']}: {escaped(item['detail'])}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(item["ok"] for item in found) else FAILED)


@cli.command()
def adopt(
    key: KeyArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token_file: TokenOption = None,
) -> None:
    """Bring an existing secret: read from standard input, proven at the broker, put into Vault, not rotated."""
    typed = typer.prompt("Secret", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    secret = Secret(typed.strip())
    answer = _act(config, url, token_file, key, "adopt", {"secret": secret.reveal()})
    if as_json:
        print_json(answer)
        return
    proven = "proven at the broker" if answer["proven"] else "not proven: the key has no `verify`"
    out.print(f"{key}: {answer['vault']['path']} version {answer['vault']['version']}, {proven}", highlight=False)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    print_json(json_schema())


@cli.command()
def demo(
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live picture.")] = False,
    directory: Annotated[Path | None, typer.Option("--dir", help="Where the sandbox's files go.")] = None,
    vault_binary: Annotated[str | None, typer.Option("--vault-binary", help="A vault or bao to use instead.")] = None,
    lifetime: Annotated[float, typer.Option("--lifetime", help="How many seconds the demo's keys live.")] = 60.0,
    platform: Annotated[str, typer.Option("--platform", help="A provider's kind, such as losant, or all.")] = "haltian",
) -> None:
    """The daemon on an embedded sandbox: a platform, a Vault, a broker, two consumers."""
    try:
        from rotator.sandbox.demo import run_demo
    except ModuleNotFoundError as exc:
        err.print(f"the demo needs {exc.name}: pip install 'rotator\\[sandbox]'", highlight=False)
        raise typer.Exit(USAGE) from None
    raise typer.Exit(
        run_demo(platform=platform, plain=plain, directory=directory, vault_binary=vault_binary, lifetime=lifetime)
    )


cli.add_typer(seal, name="seal")
for command in (backup, discover, provision, retire):
    cli.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"rotator {__version__}", highlight=False)
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from rotator.logs import configure, log_uncaught

    # Until a command chooses a level. Left alone, structlog would print to stdout, with the variables of all frames.
    configure(level="WARNING")
    log_uncaught()


# --- what the commands share -------------------------------------------------------------------------------------


def _load(config: Path, *, secrets: bool = True) -> Settings:
    return load(config, os.environ, secrets=secrets)


@contextmanager
def _application(config: Path, level: str) -> Iterator[Any]:
    """The wired program, holding the journal's lock."""
    from rotator.app import build
    from rotator.logs import configure

    if level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise typer.BadParameter(f"no such log level: {level}")
    settings = _load(config)
    configure(level=level.upper())
    with ExitStack() as stack:
        try:
            yield build(settings, stack)
        except JournalLocked as exc:
            say_error(exc)
            raise typer.Exit(FAILED) from None


@contextmanager
def _daemon(config: Path, url: str | None, token_file: Path | None) -> Iterator[Client]:
    """A client of the daemon: over `--url`, else over its Unix socket.

    Raises: NoDaemon.
    """
    if url is not None:
        token = token_file.read_text(encoding="utf-8").strip() if token_file is not None else ""
        with Client.over_url(url, Secret(token or os.environ.get("ROTATOR_ADMIN_TOKEN", ""))) as client:
            yield client
        return
    with find_daemon(_load(config, secrets=False)) as client:
        yield client


@contextmanager
def _reader(config: Path, url: str | None, token_file: Path | None) -> Iterator[Any]:
    """What answers questions: the daemon, else the journal opened for reading only."""
    try:
        with _daemon(config, url, token_file) as client:
            yield client
            return
    except NoDaemon:
        if url is not None:
            raise
    from rotator.reading import JournalReader

    reader = JournalReader(_load(config, secrets=False))
    try:
        yield reader
    finally:
        reader.close()


def _act(
    config: Path, url: str | None, token_file: Path | None, key: str, action: str, body: Mapping[str, Any] | None = None
) -> Any:
    """Have the daemon act, or act here when there is none."""
    try:
        with _daemon(config, url, token_file) as daemon:
            return daemon.post(key, action, body or {})
    except NoDaemon:
        if url is not None:
            raise
    from rotator.foreground import act_here

    err.print("no daemon answers: taking the journal's lock and acting here", highlight=False)
    with _application(config, "warning") as app:
        return act_here(app, key, action, body or {})


def _follow(
    config: Path,
    url: str | None,
    token_file: Path | None,
    key: str,
    action: str,
    body: Mapping[str, Any],
    timeout: float,
    log_level: str,
) -> dict[str, Any]:
    """Have the daemon rotate or roll back, or do it here when there is none; the rotation as it ended."""
    try:
        with _daemon(config, url, token_file) as daemon:
            return daemon.ask_and_wait(key, action, body, timeout=timeout)
    except NoDaemon:
        if url is not None:
            raise  # who names a daemon means that one
    from rotator.foreground import roll_back_here, rotate_here

    err.print("no daemon answers: taking the journal's lock and doing it here", highlight=False)
    with _application(config, log_level) as app:
        ended = roll_back_here(app, key, timeout) if action == "rollback" else rotate_here(app, key, body, timeout)
    if not ended.get("result"):
        words = f"no daemon runs: nothing goes on with {key} until one does (`rotator run`, or `rotator once`)"
        err.print(words, highlight=False, soft_wrap=True)
    return ended


def _named(config: Path, key: str | None, *, everything: bool) -> list[str]:
    if (key is None) is not everything:
        raise typer.BadParameter("name one KEY, or --all")
    if key is not None:
        return [key]
    settings = _load(config, secrets=False)
    if not settings.selections:
        return list(settings.keys)
    with _reader(config, None, None) as reader:  # it knows which keys are there
        views = reader.keys()
    return [view["name"] for view in views]


def _person(views: list[dict[str, Any]]) -> int:
    return PERSON if any(view["needs_a_person"] for view in views) else 0
