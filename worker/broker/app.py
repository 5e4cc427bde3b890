"""The one Celery app and all its settings: the broker is a hint, SQL is the truth."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

from celery import Celery, signals
from celery.exceptions import CPendingDeprecationWarning
from celery.loaders.app import AppLoader

from gridfleet.storage.settings import Settings
from gridfleet.worker.broker.keys import Keys

#: Seconds beyond ``max_runtime_s`` after which Celery kills the process that did not stop by itself.
KILL_AFTER_S = 30
#: Seconds in which one message may lead from trial to trial of its search, so that short ones need no message each.
#: It bounds what other searches, and a process that wants to be alone, wait longer for.
GO_ON_S = 1.0


class Loader(AppLoader):
    """Celery's loader, which looks for no module in the current folder: files there would stand in for packages."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> ModuleType:
        """Import a module, as any other."""
        return importlib.import_module(module, package)


def create_app(settings: Settings, keys: Keys) -> Celery:
    """Create the Celery app of a worker.

    Parameters
    ----------
    settings : Settings
        Where the broker is, and how long a trial may run.
    keys : Keys
        Those of the fleet on the broker.

    Returns
    -------
    Celery
        Configured after the measurements that docs/design.md lists.
    """
    # AMQP is Celery's name for its messaging, whatever the broker is
    app = Celery(
        "gridfleet",
        broker=settings.broker(),
        amqp="gridfleet.worker.broker.transport:AMQP",
        loader=Loader,
        include=["gridfleet.worker.trial.task"],
    )
    app.conf.update(
        # no redelivery by the broker: it ran a 14 s task three times; the lease in SQL replaces it
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        broker_transport_options={
            "ack_emulation": False,
            # without these a half-open connection stops a worker for ever
            "socket_timeout": 3,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "max_connections": 20,
            "client_name": "gridfleet",
            "fleet_id": keys.fleet_id,
            # one list: nothing is sent to those of other priorities
            "priority_steps": [0],
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_acquire_timeout=5,
        # a broker's blip must not kill hours of training
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # a trial hidden in a busy worker's buffer would wait for it
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_default_queue=keys.queue,
        # nothing but ids travels, and no results: Celery's result backend would grow for ever
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        result_backend=None,
        task_store_errors_even_if_ignored=False,
        # children are fresh interpreters: TensorFlow is not fork-safe
        worker_pool="prefork",
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,
        worker_max_memory_per_child=settings.max_memory_mb * 1000,
        # twice: a process may wait for one that has to be alone (worker/guards/neighbours.py) before it claims
        # anything; what it holds is timed by its main process (worker/main_process/watchdog.py)
        task_time_limit=2 * settings.max_runtime_s + GO_ON_S + KILL_AFTER_S,
        # SIGTERM lets go of trials at once (worker/main_process/service.py), so nothing is waited for
        worker_soft_shutdown_timeout=0.0,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=True,
    )
    return app


@signals.worker_ready.connect  # Celery's own filters are set before
def _without_advice(**_: object) -> None:
    # at each loss of the broker ten lines about a setting that is set
    warnings.filterwarnings("ignore", r"\s*In Celery 5\.1 we introduced", CPendingDeprecationWarning)
