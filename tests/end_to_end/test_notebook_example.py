"""The notebook among the examples, run from its first cell to its last in a kernel, with a fleet of its folder."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.end_to_end.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "pima.ipynb"
FIGURE = "application/vnd.plotly.v1+json"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells

    assert [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


@pytest.mark.complete  # a kernel, a fleet, four Keras models
def test_the_notebook_runs_and_shows_a_bar_and_figures(
    no_variables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(REPOSITORY / "data", tmp_path / "data")
    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    # as many epochs and folds as it takes to see all of it
    text = NOTEBOOK.read_text().replace("epochs=100", "epochs=2").replace("cv=3", "cv=2, n_jobs=2")
    notebook = nbformat.reads(text, as_version=4)

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()

    fitted, *shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"][1:]
    assert [output.output_type for output in fitted] == ["display_data", "execute_result"], fitted
    assert re.search("pima-notebook: 4/4 scored", fitted[0].data["text/plain"])
    assert "<progress" in fitted[0].data["text/html"]
    for outputs in shown[:4]:
        data: Any = outputs[-1].data
        assert data[FIGURE]["data"]
        # drawn by the script that came with it, not by one of somebody's network
        assert not re.search(r"<script[^>]+src=|import\(?\s*[\"']https?:", data.get("text/html", ""))
    assert "pima-notebook" in shown[4][-1].data["text/html"]
