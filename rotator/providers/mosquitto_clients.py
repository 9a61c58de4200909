"""What dynamic security says of its clients, read from its JSON, and the command that makes one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rotator.model import Identity, Secret, UpstreamKey, marker_in
from rotator.providers.dynamic_security import Answer, Command
from rotator.reasons import Reason

Client = Mapping[str, object]  # one client as the plugin shows it


def creation(username: str, secret: Secret, roles: Sequence[str], options: Mapping[str, str], marker: str) -> Command:
    """The command that makes a client; a role that does not exist has it refused as a whole.

    Args:
        options: of these, `text` and `client_id`.
        marker: goes to the end of the text name.
    """
    command: dict[str, object] = {
        "command": "createClient",
        "username": username,
        "password": secret.reveal(),
        "roles": [{"rolename": role} for role in roles],
        "textname": f"{options.get('text', '')} {marker}".strip(),
    }
    if client_id := options.get("client_id"):
        command["clientid"] = client_id
    return command


def client_of(answer: Answer) -> Client | None:
    """The client that `getClient` shows; None where it shows none."""
    match answer:
        case {"data": {"client": dict(client)}}:
            return client
    return None


def page_of(answer: Answer) -> tuple[Mapping[str, Client], int] | None:
    """One answer to the verbose `listClients`: username → client, and how many there are; None where it is none."""
    match answer:
        case {"data": {"totalCount": int(total), "clients": list(clients)}}:
            page = {each["username"]: each for each in clients if _is_client(each)}
            if len(page) == len(clients):
                return page, total
    return None


def upstream(username: str, client: Client) -> UpstreamKey:
    """One entry of the list."""
    client_id, name = client.get("clientid"), client.get("textname")
    name = name.encode(errors="replace").decode() if isinstance(name, str) else ""
    return UpstreamKey(
        id=username,
        name=name,
        problem=Reason.KEY_INACTIVE if client.get("disabled") is True else None,
        marker=marker_in(name),
        identity=Identity(
            id=username,
            username=username,
            client_id=client_id if isinstance(client_id, str) and whole(client_id) else None,
        ),
    )


def roles_of(client: Client) -> set[str]:
    """The names of the roles that a client has."""
    roles = client.get("roles")
    named = [each.get("rolename") for each in roles if isinstance(each, Mapping)] if isinstance(roles, list) else []
    return {name for name in named if isinstance(name, str)}


def whole(text: str) -> bool:
    """Whether text arrives in a C string as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text


def _is_client(entry: object) -> bool:
    username = entry.get("username") if isinstance(entry, Mapping) else None
    return isinstance(username, str) and whole(username)
