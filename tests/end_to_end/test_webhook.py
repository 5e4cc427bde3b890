"""A script's own fleet tells of its search, as docs/operations.md says."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest

from tests.end_to_end.conftest import start_script
from tests.faults.support import wait_for
from tests.receiver import receiving

#: A model whose second trial waits for a file, as it does in `models.py`.
CODE = """
    import models
    from gridfleet import GridSearchCV

    space = [{{"value": [1]}}, {{"value": [2], "then": ["wait"]}}]
    grid = GridSearchCV(models.Touching({folder!r}), space, n_jobs=1, cv=2, refit=False, name="told")
    grid.fit([[0.0]] * 12, [0, 1] * 6)
"""


@pytest.mark.complete
def test_a_fleet_posts_a_new_best_while_its_search_runs_and_then_the_end(embedded_home: Path) -> None:
    (embedded_home / "models.py").write_text((Path(__file__).parent / "models.py").read_text())
    code = CODE.format(folder=str(embedded_home))

    with receiving() as receiver, start_script(embedded_home, code, GRIDFLEET_WEBHOOK_URL=receiver.url) as script:
        wait_for(lambda: receiver.got or script.poll() is not None, "a new best")
        (embedded_home / "go").touch()
        _, errors = script.communicate(timeout=120)

    assert script.returncode == 0, errors
    best, ended = receiver.got
    assert receiver.paths == ["/hook/a-token"] * 2
    assert {one["Content-Type"] for one in receiver.seen} == {"application/json"}
    of_search = {"search": "told", "metric": "score", "total": 2, "failed": 0, "cancelled": 0}
    of_search |= {"std_test_score": 0.0, "submitted_by": f"{getpass.getuser()}@{socket.gethostname()}"}
    of_best = {"event": "best", "best_score": 1.0, "best_params": {"value": 1}, "number": 0, "completed": 1}
    assert {key: best[key] for key in of_search | of_best} == of_search | of_best
    of_end = {"event": "ended", "state": "completed", "best_score": 2.0, "number": 1, "completed": 2}
    of_end["best_params"] = {"value": 2, "then": "wait"}
    assert {key: ended[key] for key in of_search | of_end} == of_search | of_end
    assert best.keys() == ended.keys() == of_search.keys() | of_end.keys() | {"text", "id"}
    assert best["text"] == "told: new best, score 1 ± 0 (trial 0), 1/2 scored"
    assert ended["text"] == "told: completed, score 2 ± 0 (trial 1), 2/2 scored"
    assert best["id"] != ended["id"]
