"""What the Dockerfile does, as far as it can be tried without a container engine."""

import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())


class Probed(BaseHTTPRequestHandler):
    """Answers /livez with the server's `status`, all else with 404."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Listener)
        self.send_response(self.server.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test looks at the answer."""


class Listener(ThreadingHTTPServer):
    """The daemon's place at a free port."""

    status = 200


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A server that answers /livez."""
    with Listener(("127.0.0.1", 0), Probed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def healthcheck(port: int) -> int:
    """The exit code of the image's HEALTHCHECK against a port of this machine."""
    (command,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, *arguments = json.loads(command.replace(":9109/", f":{port}/"))
    assert program == "/opt/rotator/bin/python"
    return subprocess.run([sys.executable, *arguments], capture_output=True, timeout=30, check=False).returncode


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_healthcheck_follows_livez(listener: Listener, status: int, exit_code: int) -> None:
    """The HEALTHCHECK's own command ends with 0 where /livez is well, and with 1 where it is not."""
    listener.status = status

    assert exit_code == healthcheck(listener.server_port)


def test_healthcheck_fails_without_a_daemon(listener: Listener) -> None:
    """Nobody listens: 1."""
    listener.shutdown()
    listener.server_close()

    assert healthcheck(listener.server_port) == 1


def test_what_is_copied_builds_the_package(tmp_path: Path) -> None:
    """The Dockerfile's own wheel command, given only what it copies, builds a package with everything in it."""
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            path = ROOT / source
            if path.is_dir():
                shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, tmp_path)
    (command,) = re.findall(r"/opt/build/bin/pip (wheel .*?) +&&", DOCKERFILE)

    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("rotator-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    sources = [path for path in (ROOT / "rotator").rglob("*") if path.suffix in {".py", ".html", ".graphql", ".mako"}]
    assert {str(path.relative_to(ROOT)) for path in sources} - set(names) == set()
    assert "rotator = rotator.__main__:main" in entry_points
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_build_tool_is_pinned_by_hash() -> None:
    """The Dockerfile's sed cuts setuptools with its hashes, and nothing else, out of the developers' list."""
    (script,) = re.findall(r"sed -n '([^']+)' requirements/dev.txt", DOCKERFILE)

    cut = subprocess.run(
        ["/usr/bin/env", "sed", "-n", script, str(ROOT / "requirements" / "dev.txt")],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout

    assert re.fullmatch(r"setuptools==[\d.]+( \\\n +--hash=sha256:[0-9a-f]{64})+\n", cut)
