"""Tags of searches: what can be one, how they change, and that searches are found by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gridfleet.scheduler.reports import reader
from gridfleet.storage import searches
from gridfleet.storage.database.connection import Database
from gridfleet.storage.errors import InvalidSearchError, SearchNotFoundError
from gridfleet.storage.tags import change_tags, check_tags, tags_of
from tests.storage.conftest import store_search


def test_texts_and_numbers_are_tags() -> None:
    assert check_tags({"dataset": "pima", "size": 768, "rate": 0.5, "größe": "a b=c"}) == {
        "dataset": "pima",
        "size": "768",
        "rate": "0.5",
        "größe": "a b=c",
    }
    assert check_tags(None) == {}


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        (["dataset"], r"tags=\['dataset'\] is no dict; write tags=\{'dataset': 'pima'\}"),
        ({1: "pima"}, "tags has the key 1, which can't be one"),
        ({"": "pima"}, "tags has the key '', which"),
        ({"a=b": "pima"}, "tags has the key 'a=b', which"),
        ({"a b": "pima"}, "tags has the key 'a b', which"),
        ({"a\x00": "pima"}, "tags has the key 'a.x00', which"),
        ({"k" * 64: "pima"}, "tags has the key 'kkk"),
        ({"dataset": None}, r"tags\['dataset'\]='None' can't be a tag's value"),
        ({"dataset": True}, r"tags\['dataset'\]='True' can't"),
        ({"dataset": ""}, r"tags\['dataset'\]='' can't"),
        ({"dataset": "two\nlines"}, r"tags\['dataset'\]='two.nlines' can't"),
        ({"dataset": "v" * 256}, r"tags\['dataset'\]='vvv"),
        ({"dataset": np.zeros(3)}, r"tags\['dataset'\]='\[0"),
        ({f"k{number}": 1 for number in range(101)}, "tags has 101 entries; a search may have 100"),
    ],
)
def test_what_is_no_tag_is_refused_in_a_sentence(tags: Any, sentence: str) -> None:
    with pytest.raises(InvalidSearchError, match=sentence):
        check_tags(tags)


def test_tags_are_set_changed_and_removed(database: Database) -> None:
    search, other = store_search(database, 1), store_search(database, 1)

    change_tags(database, search.id, {"dataset": "pima", "model": "mlp"})
    change_tags(database, search.id, {"dataset": "iris", "model": None, "none": None})
    change_tags(database, other.id, {"dataset": "pima"})

    assert tags_of(database, [search.id, other.id]) == {search.id: {"dataset": "iris"}, other.id: {"dataset": "pima"}}
    with pytest.raises(SearchNotFoundError, match="it was deleted"):
        change_tags(database, 7, {"dataset": "pima"})


def test_searches_are_found_by_tag_state_and_user(database: Database) -> None:
    names = ("one", "two", "three")
    stored = {name: store_search(database, 1, name=name) for name in names}
    change_tags(database, stored["one"].id, {"dataset": "pima", "model": "mlp"})
    change_tags(database, stored["two"].id, {"dataset": "iris"})
    searches.pause_search(database, stored["one"].id)
    searches.cancel_search(database, stored["three"].id)

    def found(**only: Any) -> list[str]:
        return [search.name for search in reader.list_searches(database, **only)]

    assert found() == ["three", "two", "one"]
    assert found(tags={"dataset": None}) == ["two", "one"]
    assert found(tags={"dataset": "pima"}) == ["one"]
    assert found(tags={"dataset": "iris", "model": None}) == []
    assert (found(state="paused"), found(state="waiting"), found(state="cancelled")) == (["one"], ["two"], ["three"])
    assert found(by="somebody") == found(by="somebody@host") == found()
    assert found(by="some") == found(by="somebody@") == found(by="%") == []
    assert found(ended_for_s=0) == ["three"]
    assert found(ended_for_s=3_600) == []
    assert found(tags={"dataset": None}, limit=1) == ["two"]
