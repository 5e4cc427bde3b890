"""A patch holds from the first block that opens to the last one that closes, and leaves nothing behind."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement


def test_the_last_of_several_blocks_puts_the_original_back() -> None:
    owner = SimpleNamespace(word="original")
    patch = Patch(lambda: [Replacement(owner, "word", "patched")])
    first, second = ExitStack(), ExitStack()

    first.enter_context(patch.installed())
    second.enter_context(patch.installed())
    first.close()
    assert owner.word == "patched"
    second.close()

    assert owner.word == "original"


def test_a_block_that_raises_puts_the_original_back() -> None:
    owner = SimpleNamespace(word="original")

    with pytest.raises(LookupError), Patch(lambda: [Replacement(owner, "word", "patched")]).installed():
        raise LookupError

    assert owner.word == "original"


@pytest.mark.parametrize("before", [{}, {"flag": "mine"}])
def test_a_mappings_key_is_as_it_was_before(before: dict[str, str]) -> None:
    mapping = dict(before)

    with Patch(lambda: [Replacement(mapping, "flag", "ours")]).installed():
        assert mapping == {"flag": "ours"}

    assert mapping == before


def test_replacements_of_one_attribute_are_undone_from_the_last_to_the_first() -> None:
    owner = SimpleNamespace(word="original")
    patch = Patch(lambda: [Replacement(owner, "word", "first"), Replacement(owner, "word", "second")])

    with patch.installed():
        assert owner.word == "second"

    assert owner.word == "original"


def test_replacements_are_undone_if_one_of_them_cannot_be_installed() -> None:
    owner = SimpleNamespace(word="original")
    patch = Patch(lambda: [Replacement(owner, "word", "patched"), Replacement(owner, "no_such_attribute", None)])

    with pytest.raises(AttributeError), patch.installed():
        pass

    assert owner.word == "original"
