"""The Python and the commands of the pages, run as they stand there: in order, in one folder a page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gridfleet.scheduler.cli import main
from tests.docs.pages import ROOT, blocks

PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
#: Commands that do not end by themselves, or that end what the others need.
NOT_HERE = ("up", "down")


def _run_as_a_script(page: str, name: str) -> subprocess.CompletedProcess[str]:
    code = "\n".join(blocks(page, "python"))
    # a hundred epochs, a third fold and so on teach this test nothing
    for was, now in (
        ("epochs=100", "epochs=1"),
        ("cv=3", "cv=2"),
        ("n_trials=30", "n_trials=5"),
        ("n_samples=400", "n_samples=80"),
        ("[8, 12]", "[8]"),
        ("n_jobs=-1", "n_jobs=1"),
    ):
        code = code.replace(was, now)
    Path("script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name}: " in done.stderr
    return done


def test_no_page_but_these_has_python() -> None:
    assert [page for page in PAGES if blocks(page, "python")] == [
        "README.md",
        "docs/scikit-learn.md",
        "docs/searches.md",
    ]


def test_the_readme_s_script_and_its_commands_work(embedded_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = _run_as_a_script("README.md", "first")

    assert "model__optimizer" in done.stdout
    commands = [
        command
        for block in blocks("README.md", "sh")
        for line in block.splitlines()
        if (command := line.partition("#")[0].strip()).startswith("gridfleet ")
    ]
    asked = [command for command in commands if command.split()[1] not in NOT_HERE]
    assert len(asked) == 8
    for command in asked:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main(shlex.split(command)[1:])
        answer, errors = capsys.readouterr()
        assert not left.value.code, f"{command}: {errors}"
        assert "first" in answer or command.split()[1] in ("sql", "doctor", "export")


@pytest.mark.complete  # as the one of the README
def test_the_block_of_the_page_on_searches_works(embedded_home: Path) -> None:
    done = _run_as_a_script("docs/searches.md", "learned")
    assert "'C':" in done.stdout
    assert "raced: " in done.stderr


@pytest.mark.complete  # its two searches are like those of other tests
def test_the_blocks_of_the_page_on_scikit_learn_work(embedded_home: Path) -> None:
    _run_as_a_script("docs/scikit-learn.md", "petals")

    assert Path("search.joblib").exists()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *PAGES])
def test_every_target_of_make_that_a_page_names_is_there(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    in_blocks = [line for block in blocks(page, "sh") for line in block.splitlines()]
    named = re.findall(r"`make ([a-z][a-z-]*)", (ROOT / page).read_text())
    named += [found for line in in_blocks for found in re.findall(r"\bmake ([a-z][a-z-]*)", line)]

    assert [name for name in named if name not in targets] == []
