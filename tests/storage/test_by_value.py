"""Which code travels by value, and which by name."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import scipy.sparse

from gridfleet.storage.database.connection import Database
from gridfleet.storage.payloads.format import dump
from gridfleet.storage.payloads.store import PayloadStore
from gridfleet.storage.settings import Settings


def test_code_beside_the_script_travels_by_value(
    database: Database, database_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "layers_of_ours.py").write_text("WIDTH = 20\n\ndef width(n):\n    return WIDTH + n\n")
    (project / "model_of_ours.py").write_text(
        "from layers_of_ours import width\n\nclass Model:\n    def fit(self, n):\n        return width(n) * 2\n"
    )
    monkeypatch.syspath_prepend(project)
    import model_of_ours

    digest = PayloadStore(database, database_settings).put("evaluation", model_of_ours.Model(), what="estimator")

    script = """
        from importlib.util import find_spec
        from gridfleet.storage.database.connection import Database
        from gridfleet.storage.payloads.store import PayloadStore
        from gridfleet.storage.settings import load_settings
        assert find_spec("model_of_ours") is None and find_spec("layers_of_ours") is None
        settings = load_settings()
        print(PayloadStore(Database(settings), settings).get("evaluation", %r).fit(1))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) % digest],
        env={**os.environ, **database_settings.as_variables()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.stdout, answer.stderr) == ("42\n", "")


def test_installed_packages_travel_by_name() -> None:
    content = b"".join(dump("evaluation", scipy.sparse.csr_array, what="class"))

    assert len(content) < 1_000
    assert b"scipy.sparse" in content
