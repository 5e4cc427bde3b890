"""A search with a real worker whose database is behind a real PgBouncer in transaction mode, as it comes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gridfleet import GridSearchCV
from gridfleet.scheduler.fleet import connection as fleets
from gridfleet.storage.settings import Settings
from tests import pooler
from tests.conftest import PostgresqlServer
from tests.faults.support import attempts
from tests.running_worker import RunningWorker


@pytest.mark.skipif(pooler.PROGRAM is None, reason=pooler.MISSING)
def test_a_search_behind_a_pooler_loses_no_trial(
    make_settings: Callable[..., Settings],
    postgresql_server: PostgresqlServer,
    use_fleet: Callable[[Settings], None],
    start_worker: Callable[..., RunningWorker],
) -> None:
    direct = make_settings("postgresql")
    x = np.random.default_rng(0).normal(size=(40, 3))
    with pooler.pgbouncer(postgresql_server, "transaction", default_pool_size="3") as started:
        settings = direct.replace(database_url=started.url(str(direct.database().database)))
        use_fleet(settings)
        worker = start_worker(settings, concurrency=2)
        values = list(np.logspace(-3, 3, 30))
        search = GridSearchCV(LogisticRegression(), {"C": values}, cv=2, refit=False).fit(x, x[:, 0] > 0)
        worker.stop()

        assert [params["C"] for params in search.cv_results_["params"]] == values
        assert attempts(fleets.connect()) == [(1, "completed")] * len(values)
        fleets.connect().database.close()
    log = worker.log.read_text()
    assert "fails" not in log, log
