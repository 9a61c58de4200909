"""What each exception of the libraries below means for the store."""

from __future__ import annotations

import hvac.exceptions
import pytest
import requests.exceptions

from rotator.errors import Permanent, RotatorError, Transient
from rotator.reasons import Reason
from rotator.stores.vault_wire import HVAC_STATUS, library_error, status_error, vault_text

UNREACHABLE = (Transient, Reason.VAULT_UNREACHABLE)
WRONG_ADDRESS = (Permanent, Reason.VAULT_UNREACHABLE)
UNAVAILABLE = (Transient, Reason.VAULT_UNAVAILABLE)

# A new class in requests or hvac fails the tests below until it is here.
REQUESTS = {
    "RequestException": UNAVAILABLE,
    "InvalidJSONError": UNAVAILABLE,
    "JSONDecodeError": UNAVAILABLE,
    "HTTPError": UNAVAILABLE,
    "ConnectionError": UNREACHABLE,
    "ProxyError": UNREACHABLE,
    "SSLError": UNREACHABLE,
    "Timeout": UNREACHABLE,
    "ConnectTimeout": UNREACHABLE,
    "ReadTimeout": UNREACHABLE,
    "URLRequired": WRONG_ADDRESS,
    "TooManyRedirects": WRONG_ADDRESS,
    "MissingSchema": WRONG_ADDRESS,
    "InvalidSchema": WRONG_ADDRESS,
    "InvalidURL": WRONG_ADDRESS,
    "InvalidProxyURL": WRONG_ADDRESS,
    "InvalidHeader": (Permanent, Reason.VAULT_AUTH),
    "ChunkedEncodingError": UNREACHABLE,
    "ContentDecodingError": UNAVAILABLE,
    "StreamConsumedError": UNAVAILABLE,
    "RetryError": UNAVAILABLE,
    "UnrewindableBodyError": UNAVAILABLE,
}
HVAC = {
    "VaultError": UNAVAILABLE,
    "InvalidRequest": (Permanent, Reason.VAULT_PATH_INVALID),
    "ParamValidationError": (Permanent, Reason.VAULT_PATH_INVALID),
    "Unauthorized": (Permanent, Reason.VAULT_DENIED),
    "Forbidden": (Permanent, Reason.VAULT_DENIED),
    "InvalidPath": (Permanent, Reason.VAULT_PATH_INVALID),
    "UnsupportedOperation": (Permanent, Reason.VAULT_PATH_INVALID),
    "PreconditionFailed": UNAVAILABLE,
    "RateLimitExceeded": (Transient, Reason.VAULT_RATE_LIMITED),
    "InternalServerError": UNAVAILABLE,
    "VaultNotInitialized": UNAVAILABLE,
    "BadGateway": UNAVAILABLE,
    "VaultDown": UNAVAILABLE,
    "UnexpectedError": UNAVAILABLE,
}


def raised(module: object, base: type[Exception]) -> set[str]:
    """The names of all exceptions, but no warnings, that a module holds below `base`."""
    found = {name: each for name, each in vars(module).items() if isinstance(each, type) and issubclass(each, base)}
    return {name for name, each in found.items() if not issubclass(each, Warning)}


def test_every_exception_of_requests_and_hvac_has_a_meaning() -> None:
    """The tables above name them all."""
    assert set(REQUESTS) == raised(requests.exceptions, requests.exceptions.RequestException)
    assert set(HVAC) == raised(hvac.exceptions, hvac.exceptions.VaultError)
    assert set(HVAC) == {kind.__name__ for kind in HVAC_STATUS}


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_an_exception_of_requests_is_mapped(name: str) -> None:
    """Wrong addresses are permanent, lost connections are not; the message names the class and shows nothing else."""
    kind = getattr(requests.exceptions, name)
    args = ("s3cret", "doc s3cret", 0) if name == "JSONDecodeError" else ("s3cret",)
    error = library_error(kind(*args), what="read secret/a")
    assert REQUESTS[name] == (type(error), error.reason)
    assert f"vault: read secret/a: {name}" == str(error)


@pytest.mark.parametrize("name", sorted(HVAC))
def test_an_exception_of_hvac_is_mapped(name: str) -> None:
    """hvac's own exceptions mean what their status means."""
    error = library_error(getattr(hvac.exceptions, name)("s3cret"), what="read secret/a")
    assert HVAC[name] == (type(error), error.reason)
    assert "s3cret" not in str(error)


def test_an_unknown_exception_is_still_named() -> None:
    """A class below VaultError that came later is taken for a failure of the server."""
    later = type("Later", (hvac.exceptions.VaultError,), {})
    error = library_error(later("x"), what="read")
    assert UNAVAILABLE == (type(error), error.reason)


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_has_an_error(status: int) -> None:
    """None from 300 on goes through unnamed."""
    error = status_error(status, "Vault is sealed", what="read")
    assert isinstance(error, RotatorError)
    assert Reason.UNFORESEEN is not error.reason
    assert (Reason.VAULT_SEALED is error.reason) == (status == 503)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}, "1 error occurred: * permission denied"),
        ({"errors": [], "warnings": ["careful"]}, "careful"),
        ({"errors": ["a", 1]}, "a; 1"),
        ({"errors": "x"}, ""),
        ({}, ""),
        ({"errors": ["y" * 500]}, "y" * 199 + "…"),
    ],
)
def test_vaults_words_are_one_short_line(body: dict[str, object], text: str) -> None:
    """Errors first, warnings second."""
    assert text == vault_text(body)
