"""References to secrets. The configuration says where a secret lies, never what it is (rule 6).

`{file: PATH}` · `{credential: NAME}` (systemd's LoadCredential=) · `{env: NAME}` · `{vault: PATH#FIELD}`.
No text made here ever holds a secret, or a string that was found where a reference belongs: it may be one.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from rotator.errors import Permanent
from rotator.reasons import Reason

FORMS: Final = "{file: PATH}, {credential: NAME}, {env: NAME} or {vault: PATH#FIELD}"
KINDS: Final = ("file", "credential", "env", "vault")
# Far above any token or certificate; a reference to a log or a device must not fill the memory.
LARGEST: Final = 1 << 20

ReadVault = Callable[[str, str], str]  # (path below the mount, field) → value; raises RotatorError


class _Ref(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class FileRef(_Ref):
    """The secret is a file's content. A relative path is relative to the working directory."""

    file: Annotated[str, StringConstraints(min_length=1)]

    def __str__(self) -> str:
        return f"file {self.file}"


class CredentialRef(_Ref):
    """The secret is a systemd credential: `$CREDENTIALS_DIRECTORY/NAME`."""

    # The same characters that systemd.exec(5) allows; a slash would lead out of the folder.
    credential: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_@:-][A-Za-z0-9._@:-]*$", max_length=255)]

    def __str__(self) -> str:
        return f"credential {self.credential}"


class EnvRef(_Ref):
    """The secret is an environment variable of the daemon."""

    env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

    def __str__(self) -> str:
        return f"environment variable {self.env}"


class VaultRef(_Ref):
    """The secret is one field of a KV v2 secret below the configured mount: `PATH#FIELD`."""

    vault: Annotated[str, StringConstraints(pattern=r"^[^#/][^#]*#[^#]+$")]

    @property
    def path(self) -> str:
        """The path below the mount."""
        return self.vault.partition("#")[0]

    @property
    def field(self) -> str:
        """The field's name."""
        return self.vault.partition("#")[2]

    def __str__(self) -> str:
        return f"vault {self.vault}"


def _shape(value: object) -> object:
    """Refuse what is no reference before pydantic looks at it: its own words would repeat the value."""
    if isinstance(value, _Ref):
        return value
    if isinstance(value, Mapping):
        if len(value) == 1 and next(iter(value)) in KINDS:
            return value
        near = [name for key in value for name in difflib.get_close_matches(str(key).lower(), KINDS, n=1)]
        hint = f"did you mean `{near[0]}`?" if near and len(value) == 1 else f"write {FORMS}"
        text = "a reference to a secret has exactly one of file, credential, env, vault"
        raise PydanticCustomError("rotator", "{text}", {"text": text, "hint": hint})
    text = "a secret never stands in the configuration itself; a reference to it belongs here"
    raise PydanticCustomError("rotator", "{text}", {"text": text, "hint": f"write {FORMS}"})


def _kind(value: object) -> str | None:
    names = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, _Ref) else ()
    return next((f"<{name}>" for name in names), None)


SecretRef = Annotated[
    Annotated[FileRef, Tag("<file>")]
    | Annotated[CredentialRef, Tag("<credential>")]
    | Annotated[EnvRef, Tag("<env>")]
    | Annotated[VaultRef, Tag("<vault>")],
    Discriminator(_kind),
    BeforeValidator(_shape),
]


def check(
    ref: SecretRef, *, environ: Mapping[str, str] | None = None, allow_insecure_files: bool = False
) -> str | None:
    """Why this reference can't be read now, naming the file or variable; None when it can.

    A `{vault: …}` reference is not looked up: Vault may be away when the daemon starts.
    """
    if isinstance(ref, VaultRef):
        return None
    try:
        reveal(ref, environ=environ, allow_insecure_files=allow_insecure_files)
    except Permanent as exc:
        return exc.message
    return None


def reveal(
    ref: SecretRef,
    *,
    environ: Mapping[str, str] | None = None,
    allow_insecure_files: bool = False,
    vault: ReadVault | None = None,
) -> str:
    """The secret itself, without one trailing newline. Read anew at every call, so a replaced file counts at once.

    Args:
        ref: where the secret lies.
        environ: the environment to read; the process's own by default.
        allow_insecure_files: accept a file that everybody on the host can read.
        vault: reads one field of Vault; needed for `{vault: …}` only.

    Raises: Permanent (reason secret_reference), or what `vault` raises.
    """
    environ = os.environ if environ is None else environ
    match ref:
        case FileRef():
            return _read(Path(ref.file), f"secret file {ref.file}", private=not allow_insecure_files)
        case CredentialRef():
            folder = environ.get("CREDENTIALS_DIRECTORY")
            if not folder:
                raise _unreadable(f"{ref}: CREDENTIALS_DIRECTORY is not set; systemd sets it with LoadCredential=")
            # systemd keeps the folder itself private, whatever the mode of a file in it.
            return _read(Path(folder) / ref.credential, f"credential {ref.credential}", private=False)
        case EnvRef():
            return _present(environ.get(ref.env), str(ref))
        case VaultRef():
            if vault is None:
                raise _unreadable(f"{ref}: Vault can't be read here")
            return _present(vault(ref.path, ref.field), str(ref))


def _present(value: str | None, what: str) -> str:
    if value is None:
        raise _unreadable(f"{what} is not set")
    value = _without_newline(value)
    if not value:
        raise _unreadable(f"{what} is empty")
    return value


def _read(path: Path, what: str, *, private: bool) -> str:
    try:
        # Non-blocking, so that a named pipe is refused below instead of waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable(f"{what} is not a regular file")
            if private and status.st_mode & stat.S_IROTH:
                raise _unreadable(
                    f"{what} is readable by everybody (mode {stat.S_IMODE(status.st_mode):04o}): "
                    "`chmod o-r` it, or set allow_insecure_files: true"
                )
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as exc:  # ValueError: a path with a NUL in it
        raise _unreadable(f"{what}: {_reason(exc)}") from exc
    if len(content) > LARGEST:
        raise _unreadable(f"{what} is larger than 1 MiB")
    try:
        text = content.decode()
    except UnicodeDecodeError:  # not chained: that exception carries the bytes
        text = None
    if text is None:
        raise _unreadable(f"{what} is not UTF-8 text")
    return _present(text, what)


def _reason(exc: OSError | ValueError) -> str:
    match exc:
        case FileNotFoundError():
            return "there is no such file"
        case IsADirectoryError():
            return "this is a folder"
        case PermissionError():
            return "this user may not read it"
        case OSError():
            return (exc.strerror or "it can't be read").lower()
        case _:
            return "this is no path"


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _unreadable(message: str) -> Permanent:
    return Permanent(message, reason=Reason.SECRET_REFERENCE)
