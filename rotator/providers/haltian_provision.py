"""A new Haltian API key with all that belongs to it: integration → key → MqttIntegrator role → link.

The guide's steps 2 to 5. Each is looked for before it is done, so the whole may be run again after a failure anywhere
in it. Neither names nor descriptions are unique at Haltian: where several fit, a person chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from rotator.errors import Permanent, Transient, UnknownOutcome
from rotator.model import Issued
from rotator.providers.haltian_documents import (
    ASSIGN_ROLE,
    CREATE_API_KEY,
    CREATE_INTEGRATION,
    LINK,
    LIST_API_KEYS,
    LIST_INTEGRATIONS,
    REFRESH_API_KEY,
)
from rotator.providers.haltian_keys import (
    Integration,
    KeyReader,
    has_role,
    holds_secret,
    integration_of,
    is_revoked,
)
from rotator.providers.haltian_session import Reply
from rotator.reasons import Reason

OPTIONS: Final[Mapping[str, str]] = {
    "integration": "the integration to link the key to: its id, or its description, by which it is found or made; "
    "the key's name by default",
}
Entry = Mapping[str, object]


class Ask(Protocol):
    """Sends one document in the session that all calls share; raises what an answer without `usable` value means."""

    def __call__(
        self,
        document: str,
        variables: Mapping[str, str],
        *,
        field: str,
        operation: str,
        deadline: float,
        usable: Callable[[object], bool],
        changes: bool = False,
    ) -> Reply: ...


class Provision:
    """Runs the steps for one provider.

    Args:
        name: the provider's name in the configuration.
        ask: sends a document.
        reader: reads the answers that hold a secret.
    """

    def __init__(self, name: str, ask: Ask, reader: KeyReader) -> None:
        self._name = name
        self._ask = ask
        self._reader = reader

    def key(self, name: str, options: Mapping[str, str], deadline: float) -> Issued:
        """The key `name`, complete, with a secret: a new key's first, or a new one of a key that was there.

        Raises: see `ports.Provisioning.provision`. What a failed run made is found by the next one.
        """
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise self._refused(f"no such option: {', '.join(unknown)}")
        if not name.strip():
            raise self._refused("a key needs a name")
        wanted = options.get("integration") or name
        # both looks before the first change: where they show that a person must choose, nothing is made
        found = self._found_key(name, deadline)
        integration = self._found_integration(wanted, deadline) or self._new_integration(wanted, deadline)
        if found is None:
            issued = self._issued(CREATE_API_KEY, {"name": name}, "createApiKey", None, deadline)
            self._assign_role(issued.identity.id, deadline)
            self._link(integration.id, issued.identity.id, deadline)
            return issued
        id = str(found["id"])
        if not has_role(found):
            self._assign_role(id, deadline)
        if id not in integration.keys:
            self._link(integration.id, id, deadline)
        # last, so that whoever uses the old secret keeps it for as long as anything can still fail
        return self._issued(REFRESH_API_KEY, {"apiKeyId": id}, "refreshApiKeyToken", id, deadline)

    def integrations(self, deadline: float) -> Sequence[Integration]:
        """All integrations that this login sees.

        Raises: Transient, Permanent.
        """
        field = "mqttSubscriptionIntegration"
        entries = self._listed(LIST_INTEGRATIONS, field, "list_integrations", deadline)
        found = [integration_of(entry) for entry in entries]
        if None in found:
            text = f"{self._name}: list_integrations: an entry has no id"
            raise Transient(text, reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        return [each for each in found if each is not None]

    def _found_key(self, name: str, deadline: float) -> Entry | None:
        """The key of that name, as it is listed; revoked ones are dead for good, and don't count."""
        named = [
            entry
            for entry in self._listed(LIST_API_KEYS, "apiKeys", "list_keys", deadline)
            if isinstance(entry, Mapping) and entry.get("name") == name and not is_revoked(entry)
        ]
        if len(named) > 1:
            raise self._refused(f"{len(named)} keys have this name: delete those that nobody uses, or choose another")
        return named[0] if named else None

    def _found_integration(self, wanted: str, deadline: float) -> Integration | None:
        fitting = [each for each in self.integrations(deadline) if wanted in (each.id, each.description)]
        if len(fitting) > 1:
            raise self._refused(f"{len(fitting)} integrations have this description: name one by its id")
        if fitting and not fitting[0].active:
            raise self._refused(f"the integration {fitting[0].id} is not active: activate it, or name another")
        return fitting[0] if fitting else None

    def _new_integration(self, description: str, deadline: float) -> Integration:
        field, variables = "createMqttSubscriptionIntegration", {"description": description}
        reply = self._changed(CREATE_INTEGRATION, variables, field, "create_integration", deadline)
        made = integration_of(reply.value)
        if made is None:
            raise UnknownOutcome(f"{reply.what}: the answer names no integration")
        return made

    def _assign_role(self, id: str, deadline: float) -> None:
        self._changed(ASSIGN_ROLE, {"apiKeyId": id}, "assignApiKeyOrganizationRole", "assign_role", deadline)

    def _link(self, integration: str, id: str, deadline: float) -> None:
        variables = {"mqttSubscriptionId": integration, "apiKeyId": id}
        self._changed(LINK, variables, "assignMqttSubscriptionIntegrationApiKey", "link", deadline)

    def _issued(
        self, document: str, variables: Mapping[str, str], field: str, id: str | None, deadline: float
    ) -> Issued:
        reply = self._ask(
            document,
            variables,
            field=field,
            operation="create" if id is None else "issue",
            deadline=deadline,
            usable=holds_secret,
            changes=True,
        )
        return self._reader.issued(reply, field, id)

    def _listed(self, document: str, field: str, operation: str, deadline: float) -> Sequence[object]:
        reply = self._ask(document, {}, field=field, operation=operation, deadline=deadline, usable=is_list)
        if not isinstance(reply.value, list):
            raise Transient(f"{reply.what}: {field} is no list", reason=Reason.PROVIDER_ANSWER_UNREADABLE)
        return reply.value

    def _changed(
        self, document: str, variables: Mapping[str, str], field: str, operation: str, deadline: float
    ) -> Reply:
        reply = self._ask(
            document,
            variables,
            field=field,
            operation=operation,
            deadline=deadline,
            usable=lambda value: isinstance(value, Mapping),
            changes=True,
        )
        if not isinstance(reply.value, Mapping):
            raise UnknownOutcome(f"{reply.what}: {field} is null")
        return reply

    def _refused(self, problem: str) -> Permanent:
        return Permanent(f"{self._name}: provision: {problem}", reason=Reason.PROVIDER_REFUSED)


def is_list(value: object) -> bool:
    """Whether an answer holds a list."""
    return isinstance(value, list)
