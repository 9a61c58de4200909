"""Templates: names from a list and escaped braces, and no way into an object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotator.templates import FIELDS, WITHOUT_SECRET, faults, names, render

VALUES = {name: f"<{name}>" for name in FIELDS}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("{id}", "<id>"),
        ("{username}:{secret}", "<username>:<secret>"),
        ("haltian-iot/events/31ef/{id}/#", "haltian-iot/events/31ef/<id>/#"),
        ("{{{id}}}", "{<id>}"),
        ('{{"password": "{secret}"}}', '{"password": "<secret>"}'),
        ("{{}}", "{}"),
        ("{client_id}\n{expires_at}", "<client_id>\n<expires_at>"),
    ],
)
def test_render(template: str, expected: str) -> None:
    """Places are filled in, double braces become single ones, all else stays."""
    assert expected == render(template, VALUES)


def test_values_are_not_read_as_templates() -> None:
    """A secret that looks like a template is put in as it is."""
    assert "{id}{{" == render("{secret}", {"secret": "{id}{{", "id": "x"})


@pytest.mark.parametrize(
    "template",
    [
        "{secret.__class__}",
        "{secret[0]}",
        "{secret!r}",
        "{secret:>10}",
        "{ secret}",
        "{secret }",
        "{}",
        "{0}",
        "{SECRET}",
        "{nothing}",
        "{id",
        "id}",
        "{{id}",
        "{id}}",
        "{{{id}}",
    ],
)
def test_nothing_else(template: str) -> None:
    """No attributes, indices, conversions, formats, spaces, unknown names or lone braces."""
    assert faults(template, FIELDS) != []
    with pytest.raises(ValueError) as refused:
        render(template, VALUES)
    assert "<secret>" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{user}", "did you mean {username}?"),
        ("{clientid}", "did you mean {client_id}?"),
        ("{Secret}", "did you mean {secret}?"),
        ("{qqq}", "{qqq} is unknown"),
        ("{secret!r}", "such as {secret}"),
        ("{id", "write {{ for a brace"),
    ],
)
def test_faults_say_what_was_meant(template: str, said: str) -> None:
    """Each fault names the place and the nearest name."""
    (fault,) = faults(template, FIELDS)
    assert said in fault


def test_all_faults_at_once() -> None:
    """Every wrong place has a line of its own."""
    assert 3 == len(faults("{user} {id} {pass} }", FIELDS))


def test_allowed_names_only() -> None:
    """A known name may still be out of place: no secret in a topic."""
    assert ["{secret} can't be used here"] == faults("a/{secret}", WITHOUT_SECRET)
    assert [] == faults("a/{id}", WITHOUT_SECRET)


def test_names() -> None:
    """The places of a template, without the escaped ones."""
    assert ["id", "secret"] == names("{{x}}{id}/{secret}")


@given(st.text(alphabet="{}ab ", max_size=12))
def test_render_agrees_with_faults(template: str) -> None:
    """A template is rendered exactly when nothing is wrong with it."""
    values = {"a": "1", "b": "2"}
    if faults(template, values):
        with pytest.raises(ValueError):
            render(template, values)
    else:
        assert template.replace("{{", "").replace("}}", "").count("{") == len(names(template))
        assert isinstance(render(template, values), str)
