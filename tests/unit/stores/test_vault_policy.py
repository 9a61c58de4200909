"""What the policy lacks on a secret's paths, and the lines that add it."""

from __future__ import annotations

import pytest

from rotator.stores.vault_policy import Granted, Missing, SecretPaths, missing, policy_lines

PATHS = SecretPaths.of("kv/team", "mqtt/a")
DATA, METADATA, UNDELETE = "kv/team/data/mqtt/a", "kv/team/metadata/mqtt/a", "kv/team/undelete/mqtt/a"
EVERYTHING: Granted = {
    DATA: frozenset({"create", "update", "read"}),
    METADATA: frozenset({"read", "update"}),
    UNDELETE: frozenset({"update"}),
}


def shown(granted: Granted, *, written: bool = True) -> list[tuple[str, tuple[str, ...], bool]]:
    """Path, capabilities and whether they are needed, of each thing that is missing."""
    return [(each.path, each.capabilities, each.needed) for each in missing(PATHS, granted, written=written)]


def test_the_paths_of_a_secret() -> None:
    """Data, metadata and undelete are paths of their own, below the mount."""
    assert [DATA, METADATA, UNDELETE] == PATHS.all


@pytest.mark.parametrize("written", [True, False])
def test_nothing_is_missing(written: bool) -> None:
    """The least policy, and root, which holds nothing but that word."""
    assert [] == shown(EVERYTHING, written=written)
    assert [] == shown(dict.fromkeys(PATHS.all, frozenset({"root"})), written=written)


@pytest.mark.parametrize("granted", [{}, dict.fromkeys(PATHS.all, frozenset({"deny"}))])
def test_everything_is_missing(granted: Granted) -> None:
    """The needed comes first; a written secret needs no `create`."""
    assert [
        (DATA, ("read", "update"), True),
        (METADATA, ("read",), False),
        (METADATA, ("update",), False),
        (UNDELETE, ("update",), False),
    ] == shown(granted)
    assert (DATA, ("read", "create", "update"), True) == shown(granted, written=False)[0]


@pytest.mark.parametrize(
    ("held", "written", "lacking"),
    [
        ({"read", "update"}, True, ()),
        ({"read", "update"}, False, ("create",)),
        ({"read", "create"}, True, ("update",)),
        ({"read", "create"}, False, ("update",)),
        ({"create", "update", "list", "sudo"}, False, ("read",)),
        ({"read", "patch"}, True, ("update",)),
    ],
)
def test_what_writing_needs(held: set[str], written: bool, lacking: tuple[str, ...]) -> None:
    """`create` for the first write, `update` for the next."""
    found = shown({**EVERYTHING, DATA: frozenset(held)}, written=written)
    assert ([(DATA, lacking, True)] if lacking else []) == found


def test_a_line_for_each_path() -> None:
    """What is held already stays in it, since an exact path hides a glob; `deny` does not."""
    granted: Granted = {DATA: frozenset({"read", "list"}), METADATA: frozenset({"deny"}), UNDELETE: frozenset()}
    lacking = missing(PATHS, granted, written=False)
    assert [
        f'path "{DATA}" {{ capabilities = ["create", "list", "read", "update"] }}',
        f'path "{METADATA}" {{ capabilities = ["read", "update"] }}',
        f'path "{UNDELETE}" {{ capabilities = ["update"] }}',
    ] == policy_lines(lacking, granted).splitlines()
    assert "" == policy_lines([], granted)


def test_quotes_are_escaped() -> None:
    """A path may hold what ends a string in HCL."""
    lacking = [Missing(path='kv/data/a"b\\c', capabilities=("read",), needed=True, purpose="to read")]
    assert r'path "kv/data/a\"b\\c" { capabilities = ["read"] }' == policy_lines(lacking, {})


def test_the_words_of_a_person() -> None:
    """What is missing, where and what for."""
    lacking = Missing(path=DATA, capabilities=("create", "update"), needed=True, purpose="to write")
    assert f"the policy lacks `create`, `update` on {DATA} (to write)" == str(lacking)
