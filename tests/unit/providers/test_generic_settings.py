"""Configurations of `http` and `graphql`: the examples are whole, and each fault is named with its line."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.generic_examples import EXAMPLES, NAMES
from rotator.errors import ConfigError
from rotator.providers.generic_settings import STEPS
from rotator.settings import json_schema, load


def checked(tmp_path: Path, text: str) -> str:
    """All faults of a configuration, one a line; empty where it has none."""
    file = tmp_path / "rotator.yaml"
    file.write_text(text)
    try:
        load(file, {}, secrets=False)
    except ConfigError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_whole_configuration(name: str, tmp_path: Path) -> None:
    """`rotator check` accepts it once its secrets are there, and looks for each of them."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    references = sorted(set(_files(yaml.safe_load(text))))
    assert len(references) >= 2
    made = tmp_path / "rotator.yaml"
    made.write_text(text.replace("{file: secrets/", f"{{file: {tmp_path}/secrets/"))
    (tmp_path / "secrets").mkdir()
    for missing in references:
        for reference in references:
            file = tmp_path / reference
            file.unlink(missing_ok=True)
            if reference != missing:
                file.touch(mode=0o600)
                file.write_text("made-up\n")
        with pytest.raises(ConfigError, match=f"{missing}: there is no such file"):
            load(made, {})
    (tmp_path / references[-1]).touch(mode=0o600)
    (tmp_path / references[-1]).write_text("made-up\n")
    assert load(made, {}).keys


def _files(tree: Any) -> list[str]:
    if not isinstance(tree, dict):
        return []
    own = [tree["file"]] if isinstance(tree.get("file"), str) else []
    return own + [each for below in tree.values() for each in _files(below)]


HTTP_FAULTS = [
    ("id: clientid", "id: 'client id'", "evict.list.result.id: is no JMESPath: `id` can't stand here, at position 8"),
    ("id: user_id}", "id: user_id, active: f(@)}", "list.result.active: is no JMESPath: there is no function f()"),
    ("{$from: is_superuser}", "{$from: 'is_superuser['}", "ends too early, at position 14"),
    ("next: meta.hasnext,", "next: '',", "list.paging.next: must not be empty"),
    ("result: {items: data, id: user_id}", "result: {items: data}", "requests.list: the result names no `id`"),
    ("id: user_id}", "id: user_id, secret: s}", "requests.list: `secret` is not read from this answer"),
    ("/clients/{session}", "/clients/{sesion}", "evict.delete: {sesion} is unknown, did you mean {session}?"),
    ('"{secret}", is', '"{secret", is', "requests.set: a single '{' at position 1"),
    ('username: "{username}"', 'username: "{marker}"', "evict.list: {marker} is unknown"),
    ("path: /clients\n", "path: clients\n", "evict.list.path: must begin with a slash"),
    ("path: /clients\n", "path: /clients?a=b\n", "evict.list.path: holds a `?`"),
    ("method: PUT", "method: put", "set.method: must be GET, POST, PUT, PATCH or DELETE"),
    ("strategy: chosen", "strategy: replace", "strategy replace needs `create`"),
    ("strategy: chosen", "strategy: in_place", "strategy in_place needs `issue`"),
    ("auth: {basic:", "auth: {basik:", "auth: names none of token, basic and login"),
    ("      get:\n", "      git:\n", "unknown name `providers.emqx.requests.git`"),
    ("kind: page, param: page,", "kind: page,", "list.paging: paging by page needs `param`"),
    ("strategy: chosen", "strategy: chosen\n    secret: {alphabet: abcd, length: 31}", "such secrets have 62 bits"),
    ("strategy: chosen", "strategy: chosen\n    secret: {alphabet: abca}", "names a character twice"),
    ("strategy: chosen", "strategy: chosen\n    secret: {alphabet: 'a b'}", "printable ASCII without blanks"),
    (
        "strategy: chosen",
        "strategy: chosen\n    identity: {username: '{name}'}",
        "identity.username: {name} is unknown",
    ),
    (
        "path: /clients\n",
        "path: /clients\n          body: {a: {$from: b}}\n",
        "evict.list: there is no original here for `$from`",
    ),
]
GRAPHQL_FAULTS = [
    ("accessToken\n", "accessToken)\n", "request.document: `)` closes nothing, at line 3, column 16 of the document"),
    ("variables: {apiKeyId:", "variables: {apikeyId:", "documents.issue: the document declares no $apikeyId"),
    ('"{id}"}\n        result', '"{id}", x: 1}\n        result', "documents.issue: the document declares no $x"),
    ('variables: {apiKeyId: "{id}"}\n        result', "result", "documents.issue: $apiKeyId must be given"),
    ('"{refresh}"', '"{refrech}"', "auth.login: renew: {refrech} is unknown, did you mean {refresh}?"),
    ("{organization: login", "{organisation: login", "renew: {organization} is unknown"),
    ("login.organizationId}", "login..organizationId}", "keep.organization: is no JMESPath"),
    ("!(token.revokedAt)", "!token.revokedAt", "list.result.active: does not mean what it says"),
    (
        "result:\n          items",
        "paging: {kind: link, next: a}\n        result:\n          items",
        "has no links to pages",
    ),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [("emqx", *each) for each in HTTP_FAULTS] + [("haltian-graphql", *each) for each in GRAPHQL_FAULTS],
    ids=lambda value: str(value)[:40],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, name: str, old: str, new: str, fault: str) -> None:
    """In words that say what to do; the line is that of what is wrong, or of the step or section that it is in."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    assert old in text
    found = checked(tmp_path, text.replace(old, new, 1))
    assert fault in found
    assert 1 == len(found.splitlines()) or "basik" in new
    at = int(found.splitlines()[0].removeprefix("rotator.yaml:").partition(":")[0])
    step = text[: text.index(old)].count("\n") + 1
    assert step - 17 <= at <= step + 2


DOCUMENT = (EXAMPLES.parents[1] / "docs" / "http-provider.md").read_text()


def test_the_document_s_sections_can_be_loaded(tmp_path: Path) -> None:
    """The one at the top, with each of the ways to log in."""
    whole, ways = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    vault = "vault: {url: https://v.example, auth: {method: token, token: {env: T}}}\n"
    own = "    auth: {token: {file: secrets/api-token}}\n"
    assert own in whole
    assert "" == checked(tmp_path, vault + whole)
    parts = re.split(r"(?m)^(?=auth:)", ways)[1:]
    assert 4 == len(parts)
    for part in parts:
        assert "" == checked(tmp_path, vault + whole.replace(own, textwrap.indent(part, "    ")))


@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"login"}))
def test_the_document_s_table_has_every_step(name: str) -> None:
    """What is read from its answer, and in bold what must be."""
    line = STEPS[name]
    (row,) = [row for row in DOCUMENT.splitlines() if row.startswith("| ") and f"`{name}`" in row.split("|")[1]]
    read = row.split("|")[4]
    assert {*line.needs, *line.reads} == set(re.findall(r"`(\w+)`", read))
    assert set(line.needs) == set(re.findall(r"\*\*`(\w+)`\*\*", read))
    assert line.original == ("$from" in row)
    told = set(re.findall(r"`\{(\w+)\}`", row.split("|")[3])) | (
        {"id", "username", "client_id"} if "those" in row else set()
    )
    assert set(line.names) == told


REPLACE = """\
    strategy: replace
    requests:
      list: {method: GET, path: /, result: {id: id}}
      get: {method: GET, path: "/{id}", result: {name: name}}
      create: {method: POST, path: /, body: {label: "{name} {marker}"}, result: {id: id, secret: secret}}
      delete: {method: DELETE, path: "/{id}"}
"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", ""),
        ("{name} {marker}", "{name}", "`create` leaves no {marker}"),
        ("      list: {method: GET, path: /, result: {id: id}}\n", "", "strategy replace needs `list`"),
        ('      delete: {method: DELETE, path: "/{id}"}\n', "", "strategy replace needs `delete`"),
        (
            '      get: {method: GET, path: "/{id}", result: {name: name}}\n',
            "",
            "there is no `get`",
        ),
        ("requests:\n", 'requests:\n      set: {method: PUT, path: "/{id}"}\n', "`set` belongs to strategy chosen"),
        ("requests:\n", 'requests:\n      deactivate: {method: PUT, path: "/{id}"}\n', "belong together"),
        ("path: /, body: {", 'path: "/{marker}", query: {s: "{secret}"}, body: {', "{secret} can't be used here"),
        ("strategy: replace\n", "strategy: in_place\n", "strategy in_place needs `issue`"),
    ],
    ids=str,
)
def test_replacing_needs_a_way_to_find_and_to_retire(tmp_path: Path, old: str, new: str, fault: str) -> None:
    """A marker, a list and a deletion; and nothing of another strategy."""
    assert old in REPLACE
    vault = "vault: {url: https://v.example, auth: {method: token, token: {env: T}}}\n"
    text = f"{vault}providers:\n  p:\n    kind: http\n    url: https://p.example\n{REPLACE.replace(old, new, 1)}"
    found = checked(tmp_path, text)
    assert (fault in found) if fault else ("" == found)


@pytest.mark.parametrize("field", ["path", "query"])
def test_no_secret_stands_in_a_url(tmp_path: Path, field: str) -> None:
    """URLs are written into logs on both sides."""
    text = (EXAMPLES / "emqx.yaml").read_text()
    old = "        method: PUT\n"
    if field == "query":
        new = f'{old}        query: {{p: "{{secret}}"}}\n'
        found = checked(tmp_path, text.replace(old, new, 1))
    else:
        found = checked(
            tmp_path, text.replace("users/{id}\n        # a PUT", "users/{id}/{secret}\n        # a PUT", 1)
        )
    assert "{secret} can't stand in a URL" in found


def test_the_json_schema_knows_both_kinds() -> None:
    """For editors: expressions and bodies included."""
    schema = json.dumps(json_schema())
    assert "a JMESPath expression" in schema
    assert '"graphql"' in schema
