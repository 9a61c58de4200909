"""`check --online`: every login, path, permission and broker, tried without changing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from rotator.app import Parts, wire
from rotator.clock import SystemClock
from rotator.config_keys import Selection
from rotator.discovery import called
from rotator.errors import Permanent, RotatorError
from rotator.managed import ConsumerLink, ManagedKey
from rotator.model import VERDICT_REASONS, Secret, UpstreamKey, Verdict
from rotator.ports import Provider
from rotator.reasons import ADVICE, Reason
from rotator.sealing import prove, transit
from rotator.settings import Settings, TransitSeal
from rotator.steps import find
from rotator.stores.vault_wrapped import StillWrapped
from rotator.verify import MqttProber


def check_online(settings: Settings) -> list[dict[str, Any]]:
    """One entry a check: `{"what": …, "ok": bool, "detail": …, "reason": name or None}`."""
    with ExitStack() as stack:
        parts = wire(settings, stack, SystemClock(), lambda _done: None)
        return [*_checks(settings, parts), *_sealed(settings, parts)]


def _checks(settings: Settings, parts: Parts) -> Iterator[dict[str, Any]]:
    listed: dict[str, Sequence[UpstreamKey]] = {}
    for name, provider in parts.providers.items():
        yield _tried(f"provider {name}", partial(_look, provider, listed))
    yield _tried("vault", parts.store.ready, "reachable, unsealed, login accepted")
    for name, consumer in parts.consumers.items():
        yield _tried(f"consumer {name}", consumer.preflight, "can be restarted")
    for name, selection in settings.selections.items():
        if selection.provider in listed:
            yield _selected(name, selection, listed[selection.provider])
    for key in parts.keys.values():
        if key.provider.name in listed:
            yield _listed(key, listed[key.provider.name], parts)
        yield _vault_path(key, parts)
        yield _broker(key, parts)
        for link in key.consumers:
            if link.delivery is not None:
                what = f"key {key.name}: delivery to {link.consumer.name}"
                yield _tried(what, link.delivery.preflight, "its own way to the secret is there")
            if link.open_watch is not None and link.early:
                yield _tried(
                    f"key {key.name}: proof of {link.consumer.name}", partial(_watch, key, link), "can be seen"
                )


def _sealed(settings: Settings, parts: Parts) -> Iterator[dict[str, Any]]:
    """Whether Vault's transit engine wraps and unwraps for us; a key file needs nobody."""
    seal = settings.state.seal
    if isinstance(seal, TransitSeal):
        yield _tried("seal", lambda: prove(transit(seal, lambda: parts.store)), "Vault wraps and unwraps data keys")


def _watch(key: ManagedKey, link: ConsumerLink) -> None:
    """Raise when the account that reads the evidence can't read it."""
    if link.open_watch is None:
        return
    watch = link.open_watch(key.provider.identity(key.id), None, None)
    try:
        if why := watch.healthy():
            raise Permanent(why, reason=Reason.EVIDENCE_UNREADABLE)
    finally:
        watch.close()


def _look(provider: Provider, listed: dict[str, Sequence[UpstreamKey]]) -> None:
    listed[provider.name] = provider.list_keys()


def _vault_path(key: ManagedKey, parts: Parts) -> dict[str, Any]:
    """What preflight looks at, and what the policy lacks beyond that, with the lines that add it."""
    what = f"key {key.name}: Vault path {key.path}"
    try:
        parts.store.preflight(key.path, lasting=key.longest, versions=key.versions_needed)
        survey = parts.store.survey(key.path)
    except StillWrapped as exc:
        return _not_tried(what, exc)
    except RotatorError as exc:
        return {"what": what, "ok": False, "detail": f"{exc.message}. {exc.advice}", "reason": exc.reason.value}
    notes = [*survey.notes, *(str(each) for each in survey.missing)]
    if survey.policy_lines:
        notes.append(f"add: {survey.policy_lines}")
    return {"what": what, "ok": True, "detail": "; ".join(["may be read and written", *notes]), "reason": None}


def _tried(what: str, check: Callable[[], object], well: str = "login accepted, keys listed") -> dict[str, Any]:
    try:
        check()
    except StillWrapped as exc:
        return _not_tried(what, exc)
    except RotatorError as exc:
        return {"what": what, "ok": False, "detail": f"{exc.message}. {exc.advice}", "reason": exc.reason.value}
    return {"what": what, "ok": True, "detail": well, "reason": None}


def _not_tried(what: str, why: StillWrapped) -> dict[str, Any]:
    """Well, as far as can be seen: only the daemon may use the wrapping token up."""
    return {"what": what, "ok": True, "detail": f"not tried: {why.message}", "reason": None}


def _listed(key: ManagedKey, listed: Sequence[UpstreamKey], parts: Parts) -> dict[str, Any]:
    try:
        current = key.id_of(parts.store.read(key.path).data) or key.id
    except RotatorError:
        current = key.id
    # a key that was replaced has another id than the configuration's, which is its first
    upstream = find(listed, current) or find(listed, key.id)
    what = f"key {key.name}: at {key.provider.name}"
    if upstream is None:
        detail = f"the id {key.id} is not listed; `rotator discover {key.provider.name}` prints those that are"
        return {"what": what, "ok": False, "detail": detail, "reason": "key_unknown"}
    if upstream.problem is not None:
        return {"what": what, "ok": False, "detail": upstream.problem.value, "reason": upstream.problem.value}
    if upstream.expires_at is not None:
        return {
            "what": what,
            "ok": True,
            "detail": f"listed, expires {upstream.expires_at.isoformat()}",
            "reason": None,
        }
    if key.policy.max_age is None:
        detail = f"listed, without an expiry. {ADVICE[Reason.NO_EXPIRY]}"
        return {"what": what, "ok": False, "detail": detail, "reason": "no_expiry"}
    return {"what": what, "ok": True, "detail": "listed, without an expiry: rotated by `max_age`", "reason": None}


def _selected(name: str, selection: Selection, listed: Sequence[UpstreamKey]) -> dict[str, Any]:
    """How many keys a selection stands for; none may be what is meant."""
    count = sum(selection.discover.covers(called(upstream)) for upstream in listed)
    what = f"selection {name}: at {selection.provider}"
    return {"what": what, "ok": True, "detail": f"{count} of {len(listed)} keys are meant", "reason": None}


def _broker(key: ManagedKey, parts: Parts) -> dict[str, Any]:
    """With the secret that Vault holds; where it holds none, whether the broker answers at all."""
    what = f"key {key.name}: broker"
    if not key.provable:
        return {"what": what, "ok": True, "detail": "no `verify`: new secrets will not be probed", "reason": None}
    data, none = None, "Vault holds no secret to try"
    try:
        data = parts.store.read(key.path).data
    except RotatorError:  # the line about Vault's path says why
        none = "no secret was tried, since Vault could not be read"
    held = key.secret_of(data)
    # a key that is replaced is another one by now than the configuration's; Vault says which
    identity = key.identity_in(data, key.provider.identity(key.id))
    result = key.proof(MqttProber(), identity, held or Secret(""))
    if held is None:
        reached = result.verdict is not Verdict.UNREACHABLE
        words = f"reachable; {none}" if reached else result.detail
        return {"what": what, "ok": reached, "detail": words, "reason": None if reached else "broker_unreachable"}
    reason = VERDICT_REASONS[result.verdict]
    detail = result.detail or result.verdict.value
    return {"what": what, "ok": reason is None, "detail": detail, "reason": reason.value if reason else None}
