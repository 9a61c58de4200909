"""Where an unwrapped secret id is kept: sealed, in the journal. And the Vault login that the configuration asks for.

Part of the composition root: it knows the settings, the journal and the seal.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rotator.errors import JournalFailed
from rotator.journal.keeping import load_secret_id, save_secret_id
from rotator.journal.seal import Seal
from rotator.journal.seal_file import read_key
from rotator.journal.sqlite import SqliteJournal
from rotator.ports import Reveal
from rotator.reasons import Reason
from rotator.secret_refs import FileRef, SecretRef, reveal
from rotator.settings import (
    AppRoleAuth,
    CertAuth,
    FileSeal,
    JwtAuth,
    KubernetesAuth,
    Settings,
    TokenAuth,
)
from rotator.stores import vault_auth
from rotator.stores.vault_wrapped import Keep, WrappedAppRoleAuth


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSecretId:
    """A `Keep` of the process that holds the journal's lock."""

    journal: SqliteJournal
    seal: Seal

    def load(self) -> bytes | None:
        """The secret id as it was saved; None where none was. Raises: JournalFailed; Permanent SEAL_BROKEN."""
        return load_secret_id(self.journal, self.seal)

    def save(self, content: bytes) -> None:
        """Seal it and commit it, in the place of the one before. Raises: JournalFailed."""
        save_secret_id(self.journal, self.seal, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSecretIdReader:
    """A `Keep` for all other processes: a daemon may have the journal."""

    settings: Settings

    def load(self) -> bytes | None:
        """What the daemon has kept; None where nothing is. Raises: JournalFailed; Permanent SEAL_BROKEN."""
        state = self.settings.state
        # sealed by Vault itself, it could not be opened before a login; the configuration's checks refuse that
        if not state.path.exists() or not isinstance(state.seal, FileSeal):
            return None
        path = Path(state.seal.path)
        with closing(SqliteJournal(state.url, read_only=True)) as journal:
            return load_secret_id(journal, lambda: Seal(read_key(path)))

    def save(self, content: bytes) -> None:
        """Nothing is unwrapped here, so there is nothing to save."""
        raise JournalFailed("the journal is open for reading only", reason=Reason.JOURNAL_UNWRITABLE)


def make_auth(settings: Settings, keep: Keep | None) -> vault_auth.Auth:
    """The login of the settings.

    Args:
        keep: where to keep an unwrapped secret id; None for a process that must not unwrap one.
    """
    auth = settings.vault.auth

    def later(ref: SecretRef | str, *, insecure: bool = settings.allow_insecure_files) -> Reveal:
        return lambda: ref if isinstance(ref, str) else reveal(ref, allow_insecure_files=insecure)

    match auth:
        case TokenAuth():
            return vault_auth.TokenAuth(token=later(auth.token))
        case AppRoleAuth(wrapped=True):
            return WrappedAppRoleAuth(
                role_id=later(auth.role_id),
                wrapping_token=later(auth.secret_id),
                keep=keep if keep is not None else KeptSecretIdReader(settings=settings),
                unwraps=keep is not None,
                mount=auth.mount,
                written=lambda: _written(auth.secret_id),
            )
        case AppRoleAuth():
            return vault_auth.AppRoleAuth(
                role_id=later(auth.role_id), secret_id=later(auth.secret_id), mount=auth.mount
            )
        case KubernetesAuth():
            # the kubelet chooses the mode of the file
            return vault_auth.KubernetesAuth(role=auth.role, jwt=later(auth.jwt, insecure=True), mount=auth.mount)
        case JwtAuth():
            return vault_auth.JwtAuth(role=auth.role, jwt=later(auth.jwt), mount=auth.mount)
        case CertAuth():
            return vault_auth.CertAuth(role=auth.role, mount=auth.mount)


def _written(ref: SecretRef) -> datetime | None:
    """When a file was last written; None for what is no file, or can't be looked at."""
    if not isinstance(ref, FileRef):
        return None
    try:
        return datetime.fromtimestamp(Path(ref.file).stat().st_mtime, UTC)
    except OSError:
        return None
