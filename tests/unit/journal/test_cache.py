"""The records kept in memory: only what a commit or an undisturbed read has put there."""

from __future__ import annotations

import pytest

from rotator.journal.cache import MISSING, Cache


@pytest.fixture
def cache() -> Cache[int]:
    return Cache(3)


def test_a_staged_value_is_seen_by_its_transaction_alone(cache: Cache[int]) -> None:
    """Until it is committed."""
    cache.stage("a", 1)
    assert (1, MISSING) == (cache.latest("a"), cache.get("a"))
    cache.publish()
    assert (1, 1) == (cache.latest("a"), cache.get("a"))


def test_nothing_is_a_value_as_well(cache: Cache[int]) -> None:
    """The file is not asked again for what it does not hold."""
    cache.offer("a", None, cache.generation)
    assert cache.get("a") is None
    cache.stage("a", MISSING)
    cache.publish()
    assert MISSING is cache.get("a")


def test_a_failed_commit_leaves_nothing(cache: Cache[int]) -> None:
    """Neither what it staged, nor what was there before."""
    cache.stage("a", 1)
    cache.publish()
    cache.stage("a", 2)
    cache.clear()
    cache.publish()
    assert MISSING is cache.get("a")


def test_after_an_unknown_write_only_later_values_count(cache: Cache[int]) -> None:
    """A write that may have changed anything, between two of one transaction."""
    cache.stage("a", 1)
    cache.publish()
    cache.stage("b", 2)
    cache.doubt()
    assert (MISSING, MISSING) == (cache.latest("a"), cache.latest("b"))
    cache.stage("c", 3)
    cache.publish()
    assert (MISSING, MISSING, 3) == (cache.get("a"), cache.get("b"), cache.get("c"))


def test_a_read_from_before_a_commit_is_too_late(cache: Cache[int]) -> None:
    """Else it would bring back the past."""
    generation = cache.generation
    cache.stage("b", 2)
    cache.publish()
    cache.offer("a", 1, generation)
    assert MISSING is cache.get("a")
    cache.offer("a", 1, cache.generation)
    assert 1 == cache.get("a")


def test_the_names_written_longest_ago_go_first(cache: Cache[int]) -> None:
    """Three are kept."""
    for name, value in (("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)):
        cache.stage(name, value)
        cache.publish()
    assert [4, MISSING, 3, 5] == [cache.get(name) for name in "abcd"]


def test_a_cache_of_no_size_keeps_nothing() -> None:
    """For a journal that another process writes."""
    cache: Cache[int] = Cache(0)
    cache.offer("a", 1, cache.generation)
    cache.stage("b", 2)
    cache.publish()
    assert (MISSING, MISSING) == (cache.get("a"), cache.get("b"))
