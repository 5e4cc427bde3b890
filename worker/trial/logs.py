"""Lets the processes of a Celery worker log as all services do: Celery sets its own log up first, then calls these."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from billiard.process import current_process
from billiard.util import get_logger
from celery import signals

from gridfleet.storage.logs import log_to_stderr
from gridfleet.storage.settings import load_settings
from gridfleet.worker.trial.process import NODE_VARIABLE


@signals.after_setup_logger.connect
def _log_as_a_service(**_: Any) -> None:
    settings = load_settings()
    worker = os.environ.get(NODE_VARIABLE) or socket.gethostname()
    if current_process()._name != "MainProcess":
        worker = f"{worker}/{os.getpid()}"
    handler = log_to_stderr(settings.log_level, settings.log_format, service="worker", worker=worker)
    get_logger().handlers[:] = [handler]  # of the library of processes, which goes to no other logger


@signals.after_setup_task_logger.connect
def _log_as_other_loggers(logger: logging.Logger, **_: Any) -> None:
    logger.handlers.clear()
    logger.propagate = True
