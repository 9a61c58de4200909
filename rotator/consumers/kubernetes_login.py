"""Who a Kubernetes consumer is at which API server: the pod's own service account, or a kubeconfig.

lightkube reads both; what is added here is what it does not do: one message for everything that can be wrong with them,
and the credential plugins (`exec`) of client.authentication.k8s.io/v1 as well as v1beta1. A plugin gets none of the
daemon's own variables, which may hold secrets (rule 6), and is ended when it takes too long.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from lightkube import KubeConfig
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, SingleConfig
from lightkube.config.models import User, UserExec
from lightkube.core.exceptions import ConfigError

from rotator.consumers.command import INHERITED

DEFAULT: Final = "~/.kube/config"
PLUGIN_TIME: Final = 30.0  # seconds that a credential plugin may take
PLUGIN_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")  # what a header can carry; the library's error would show another one whole

# What reading a kubeconfig raises, in lightkube, msgspec (a ValueError), PyYAML, and TLS; binascii's is a ValueError.
UNREADABLE: Final = (
    ConfigError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    yaml.YAMLError,
)


class PluginFailed(Exception):
    """A credential plugin gave nothing; it may the next time. The text holds nothing of what it printed."""


def read(kubeconfig: str | None, context: str | None, service_account: str = SERVICE_ACCOUNT) -> SingleConfig:
    """The API server and the credentials to use there, read anew at each call.

    Args:
        kubeconfig: the file; None: the pod's service account where there is one (and no `context` is asked for), else
            $KUBECONFIG, else ~/.kube/config.
        context: one of the file's contexts; None: its current one.
        service_account: the folder with the pod's `token`, `ca.crt` and `namespace`.

    Raises: one of `UNREADABLE`, with a text that holds no credentials; PluginFailed.
    """
    if kubeconfig is None and context is None and os.path.exists(os.path.join(service_account, "token")):
        return _checked(_only(KubeConfig.from_service_account(service_account).get()))
    path = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT
    if kubeconfig is None and os.pathsep in path:
        raise ConfigError("$KUBECONFIG names several files: name one as the consumer's `kubeconfig`")
    return _checked(_only(KubeConfig.from_file(path).get(context)))


def told(exc: Exception) -> str:
    """Why a kubeconfig can't be used, in words of ours or lightkube's; others may quote the file."""
    if isinstance(exc, ConfigError):
        return " ".join(str(exc).split())
    if isinstance(exc, ssl.SSLError | binascii.Error):
        return f"a certificate or key there can't be read ({type(exc).__name__})"
    if isinstance(exc, OSError):
        return f"{exc.filename or 'it'}: {exc.strerror or type(exc).__name__}"
    if isinstance(exc, KeyError):
        return f"it has no {exc.args[0] if exc.args else 'such entry'}"
    return f"it can't be read as one ({type(exc).__name__})"


def _only(config: SingleConfig | None) -> SingleConfig:
    if config is None:
        raise ConfigError("it has no current context")
    return config


def _checked(config: SingleConfig) -> SingleConfig:
    """The same with a plugin's answer in the plugin's place, and files by their full path."""
    user = config.user
    if user is None:
        raise ConfigError(f"its context {config.context_name} has no user")
    if user.token_file is not None:
        user = msgspec.structs.replace(user, token_file=str(config.abs_file(user.token_file)))
    elif user.token is None and user.exec is not None:
        user = _from_plugin(user.exec, config)
    if user.token_file is None and user.token is not None:
        if _TOKEN.fullmatch(user.token.strip()) is None:
            raise ConfigError("its user's token is none")
        user = msgspec.structs.replace(user, token=user.token.strip())
    for data in (config.cluster.certificate_auth_data, user.client_cert_data, user.client_key_data):
        base64.b64decode(data or "")  # lightkube leaves a file open where it is none
    return config._replace(user=user)


def _from_plugin(spec: UserExec, config: SingleConfig) -> User:
    """What a credential plugin says: a token, or a client certificate with its key."""
    if spec.apiVersion not in PLUGIN_VERSIONS:
        raise ConfigError(f"its credential plugin speaks {spec.apiVersion}, not one of {', '.join(PLUGIN_VERSIONS)}")
    command = str(config.abs_file(spec.command)) if os.sep in spec.command else spec.command
    info = {"apiVersion": spec.apiVersion, "kind": "ExecCredential", "spec": {"interactive": False}}
    variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
    variables["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    variables |= {each.name: each.value for each in spec.env or ()}
    label = f"the credential plugin {Path(command).name}"
    try:
        ended = subprocess.run(
            [command, *(spec.args or ())],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PLUGIN_TIME,
            check=False,
        )
    except subprocess.TimeoutExpired:  # its text holds what the plugin printed
        raise PluginFailed(f"{label} is not done after {PLUGIN_TIME:g} s") from None
    if ended.returncode != 0:
        raise PluginFailed(f"{label} ended with {ended.returncode}")
    return _credentials(ended.stdout, label)


def _credentials(output: bytes, label: str) -> User:
    try:
        status: Any = json.loads(output)["status"]
        token, certificate, key = (status.get(name) for name in ("token", "clientCertificateData", "clientKeyData"))
        if token is not None and not isinstance(token, str):
            raise TypeError
        return User(token=token, client_cert_data=_base64(certificate), client_key_data=_base64(key))
    except (ValueError, LookupError, TypeError, AttributeError):  # its text holds what the plugin printed
        raise PluginFailed(f"{label} printed no credentials") from None


def _base64(pem: str | None) -> str | None:
    return None if pem is None else base64.b64encode(pem.encode()).decode()
