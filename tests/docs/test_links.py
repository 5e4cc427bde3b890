"""The links of the documents lead somewhere, and the files that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*.md")])
#: Top-level folders; a path that begins with one of them, between backticks, is one of ours.
FOLDERS = "benchmarks|data|deploy|docs|examples|gridfleet|scheduler|storage|tests|worker"


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        if not linked.exists() or (anchor and anchor not in _anchors(linked)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", document.read_text())

    # files of other projects, which docs/style.md recommends
    foreign = {"tests/acceptance/test_nominal.py", "tests/test_docs.py", "docs/cli-reference.rst"}
    assert [path for path in named if path not in foreign and not (ROOT / path).exists()] == []


def test_every_test_of_faults_that_reliability_names_is_there() -> None:
    rows = re.findall(r"^\|.*$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    named = [found for row in rows for found in re.findall(r"`(test_\w+\.py)`(?: \(([^)]*)\))?", row)]
    assert len(named) > 20

    missing = []
    for file, parts in named:
        text = (ROOT / "tests" / "faults" / file).read_text()
        # `…stopped_alone_is_replaced` is a part of a test's name
        missing += [part for part in re.findall(r"\w{2,}", parts) if part not in text]

    assert missing == []
