"""The private names of billiard and Celery by which a message is given to another process."""

from __future__ import annotations

import inspect

import billiard
import celery
from billiard import pool as billiard_pool
from celery.concurrency.asynpool import AsynPool


def test_the_pool_asks_what_becomes_of_the_message_of_a_process_that_ended() -> None:
    source = inspect.getsource(billiard_pool.Pool._join_exited_workers)

    version = f"billiard {billiard.__version__}, Celery {celery.__version__}"
    assert "self.on_job_process_lost(" in source, version
    assert "_controlled_termination" in source, version
    assert list(inspect.signature(AsynPool.on_job_process_lost).parameters) == ["self", "job", "pid", "exitcode"]
    assert "self._put_back = _put_back" in inspect.getsource(AsynPool._create_write_handlers), version


def test_a_message_knows_no_more_of_who_accepted_it_than_what_is_taken_back() -> None:
    result = billiard_pool.ApplyResult({}, None)
    before = dict(vars(result))

    result._ack(None, 1.0, 2, None)

    changed = {name for name, value in vars(result).items() if value != before[name]}
    assert changed == {"_accepted", "_time_accepted", "_worker_pid"}, f"billiard {billiard.__version__}"
