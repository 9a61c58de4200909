"""Where fresh secrets go: HashiCorp Vault (or OpenBao), KV version 2."""

from rotator.stores.vault import VaultStore
from rotator.stores.vault_auth import AppRoleAuth, TokenAuth

__all__ = ["AppRoleAuth", "TokenAuth", "VaultStore"]
