"""Every package that is installed is one whose hash is in the repository."""

from __future__ import annotations

import re

import pytest

from tests.security.conftest import REPOSITORY

LOCK_FILES = ("requirements.lock", "requirements-runtime.lock", "requirements-estimators.lock")
#: The first releases without the holes that we know of: code in a model's archive (CVE-2026-1462), world-writable
#: folders of a transport (kombu#2644).
AT_LEAST = {"keras": (3, 15, 1), "kombu": (5, 7, 0), "celery": (5, 7, 0)}


def _requirements(name: str) -> list[str]:
    text = (REPOSITORY / name).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("name", LOCK_FILES)
def test_every_package_is_pinned_with_its_hashes_and_from_no_index_of_its_own(name: str) -> None:
    requirements = _requirements(name)

    assert len(requirements) > 50
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^]]*\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement), requirement
        assert set(re.findall(r"--([a-z-]+)", requirement)) == {"hash"}, requirement
        assert "://" not in requirement


@pytest.mark.parametrize("name", LOCK_FILES)
def test_no_index_is_named_in_a_comment_either(name: str) -> None:
    assert not re.search("index-url|find-links|trusted-host|https?://", (REPOSITORY / name).read_text())


def test_the_image_has_the_releases_that_are_tested() -> None:
    tested = {line.partition(" ")[0] for line in _requirements("requirements.lock")}

    assert {line.partition(" ")[0] for line in _requirements("requirements-runtime.lock")} <= tested


@pytest.mark.parametrize("name", LOCK_FILES)
def test_no_release_with_a_known_hole_is_pinned(name: str) -> None:
    pinned = dict(line.partition(" ")[0].split("==") for line in _requirements(name))

    for package, least in AT_LEAST.items():
        assert tuple(map(int, pinned[package].split("."))) >= least


@pytest.mark.parametrize("name", ["Dockerfile", "Makefile"])
def test_what_is_downloaded_is_compared_with_its_hash(name: str) -> None:
    text = (REPOSITORY / name).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip .*?install .*", text)

    assert installs
    for install in installs:
        # or nothing is downloaded at all: the project itself
        assert "--require-hashes" in install or "--no-deps" in install, install
        if "--no-deps" in install:
            assert "--no-build-isolation" in install, install
    assert "trusted-host" not in text
