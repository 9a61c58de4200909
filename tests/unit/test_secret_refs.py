"""References to secrets: each kind read for real, each way it can fail, and no secret in any text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from rotator.errors import Permanent
from rotator.reasons import Reason
from rotator.secret_refs import LARGEST, CredentialRef, EnvRef, FileRef, SecretRef, VaultRef, check, reveal

SECRET = "hunter2-hunter2"
ADAPTER: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


def secret_file(folder: Path, content: str | bytes = SECRET + "\n", mode: int = 0o600) -> Path:
    """A file with a secret and exactly these permissions."""
    path = folder / "secret"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"file": "/x"}, FileRef(file="/x")),
        ({"credential": "haltian-password"}, CredentialRef(credential="haltian-password")),
        ({"env": "PASSWORD"}, EnvRef(env="PASSWORD")),
        ({"vault": "apps/rotator#password"}, VaultRef(vault="apps/rotator#password")),
    ],
)
def test_forms(raw: dict[str, str], expected: SecretRef) -> None:
    """Each documented form becomes its own type."""
    assert expected == ADAPTER.validate_python(raw)


@pytest.mark.parametrize(
    "raw",
    [
        SECRET,
        12345678,
        None,
        [SECRET],
        {},
        {SECRET: None},
        {"fiel": SECRET},
        {"file": "/x", "env": "X"},
        {"file": ""},
        {"credential": "../" + SECRET},
        {"env": SECRET},
        {"vault": SECRET},
        {"vault": SECRET + "#"},
        {"vault": "#" + SECRET},
    ],
)
def test_refused_without_echo(raw: object) -> None:
    """Whatever stands where a reference belongs may be a secret, and is not repeated."""
    with pytest.raises(ValidationError) as refused:
        ADAPTER.validate_python(raw)
    told = [(error["msg"], error.get("ctx")) for error in refused.value.errors()]
    assert SECRET not in str(told)


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640])
def test_file(tmp_path: Path, mode: int) -> None:
    """A file that not everybody can read gives its content without the trailing newline."""
    ref = FileRef(file=str(secret_file(tmp_path, mode=mode)))
    assert check(ref) is None
    assert SECRET == reveal(ref)


@pytest.mark.parametrize(
    ("content", "expected"), [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("é", "é")]
)
def test_one_newline(tmp_path: Path, content: str, expected: str) -> None:
    """One newline at the end is the editor's; everything else belongs to the secret."""
    assert expected == reveal(FileRef(file=str(secret_file(tmp_path, content))))


def test_file_is_read_anew(tmp_path: Path) -> None:
    """A replaced file counts at the next call."""
    ref = FileRef(file=str(secret_file(tmp_path)))
    first = reveal(ref)
    secret_file(tmp_path, "other")
    assert (SECRET, "other") == (first, reveal(ref))


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (SECRET.encode(), 0o644, "readable by everybody (mode 0644)"),
        (SECRET.encode(), 0o604, "readable by everybody (mode 0604)"),
        (SECRET.encode() + b"\xff", 0o600, "not UTF-8"),
        (b"x" * (LARGEST + 1), 0o600, "larger than 1 MiB"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    """The file is named, its content never."""
    path = secret_file(tmp_path, content, mode)
    fault = check(FileRef(file=str(path)))
    assert fault is not None
    assert str(path) in fault
    assert said in fault
    assert SECRET not in fault


def test_unreadable_at_run_time(tmp_path: Path) -> None:
    """At run time the same fault is an error with a reason, and its whole chain holds no content."""
    path = secret_file(tmp_path, SECRET.encode() + b"\xff")
    with pytest.raises(Permanent) as refused:
        reveal(FileRef(file=str(path)))
    assert Reason.SECRET_REFERENCE is refused.value.reason
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    path = tmp_path / "absent"
    assert f"secret file {path}: there is no such file" == check(FileRef(file=str(path)))


def test_neither_folder_nor_pipe(tmp_path: Path) -> None:
    """A folder is none, and a named pipe is refused instead of waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, mode=0o600)
    assert f"secret file {tmp_path}: this is a folder" == check(FileRef(file=str(tmp_path)))
    assert f"secret file {pipe} is not a regular file" == check(FileRef(file=str(pipe)))
    assert "this is no path" in str(check(FileRef(file="a\0b")))


def test_allow_insecure_files(tmp_path: Path) -> None:
    """A file readable by everybody is accepted where the configuration says so."""
    ref = FileRef(file=str(secret_file(tmp_path, mode=0o644)))
    assert check(ref, allow_insecure_files=True) is None
    assert SECRET == reveal(ref, allow_insecure_files=True)


def test_link_counts_as_its_target(tmp_path: Path) -> None:
    """Kubernetes mounts secrets through links, whose own mode means nothing."""
    link = tmp_path / "link"
    link.symlink_to(secret_file(tmp_path))
    assert SECRET == reveal(FileRef(file=str(link)))


def test_credential(tmp_path: Path) -> None:
    """A systemd credential is a file in the folder that systemd names, whatever its mode."""
    secret_file(tmp_path, mode=0o644)
    ref = CredentialRef(credential="secret")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert SECRET == reveal(ref, environ=environ)
    assert "credential other: there is no such file" == check(CredentialRef(credential="other"), environ=environ)
    assert "LoadCredential=" in str(check(ref, environ={}))


def test_env() -> None:
    """A variable gives its value; an absent or empty one is named."""
    ref = EnvRef(env="PASSWORD")
    assert SECRET == reveal(ref, environ={"PASSWORD": SECRET})
    assert "environment variable PASSWORD is not set" == check(ref, environ={})
    assert "environment variable PASSWORD is empty" == check(ref, environ={"PASSWORD": ""})


def test_vault() -> None:
    """A field of Vault is read by the function that is passed in, and only at run time."""
    asked: list[tuple[str, str]] = []

    def read(path: str, field: str) -> str:
        asked.append((path, field))
        return SECRET

    ref = VaultRef(vault="apps/rotator#password")
    assert check(ref) is None
    assert SECRET == reveal(ref, vault=read)
    assert [("apps/rotator", "password")] == asked
    with pytest.raises(Permanent, match="can't be read here"):
        reveal(ref)
