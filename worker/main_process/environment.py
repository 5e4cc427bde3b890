"""The variables that a worker's processes inherit: most are read by libraries when these are imported."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path

import joblib

from gridfleet.storage.payloads.host_cache import cache_folder
from gridfleet.storage.private_folder import make_private_folder, why_not_made
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.worker.guards.memory import THREAD_VARIABLES, default_limit_mb
from gridfleet.worker.guards.sign_of_life import FOLDER_VARIABLE, forget_signs_of_the_dead
from gridfleet.worker.guards.temporary_folder import temporary_folder
from gridfleet.worker.guards.xla_cache import share_compiled_programs
from gridfleet.worker.trial.process import NODE_VARIABLE

logger = logging.getLogger(__name__)

#: Threads of each of a process's pools. More bring next to nothing to models that a search trains, and each takes a
#: stack: with 96 of them, trials on a machine of 192 cores ended for want of memory.
MAX_THREADS = 16
#: Variables that name files for PostgreSQL's client library and for TLS; of them, "system" is none.
FILE_VARIABLES = (
    "PGPASSFILE",
    "PGSERVICEFILE",
    "PGSYSCONFDIR",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)


def prepare_environment(settings: Settings, concurrency: int) -> None:
    """Set the variables of this process and of those that it starts.

    Parameters
    ----------
    settings : Settings
        Where files are kept, and the bound of memory.
    concurrency : int
        How many processes share this machine's cores and memory.
    """
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    # files of the current folder must not stand in for packages, in this worker's processes and in what they start
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault(NODE_VARIABLE, f"{socket.gethostname()}-{secrets.token_hex(4)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ[FOLDER_VARIABLE] = str(_signs_folder(settings))
    os.environ[f"{PREFIX}MEMORY_LIMIT_MB"] = str(settings.memory_limit_mb or default_limit_mb(concurrency))
    share_compiled_programs(settings)
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads_per_process(concurrency)))


@contextmanager
def private_current_folder(settings: Settings) -> Iterator[None]:
    """Make an empty private folder the current one, and remove it at the end.

    What lies in the current folder is found by relative paths of the environment, and by XLA, which runs ``bin/ptxas``.
    """
    for name in ("home", "cache_dir", "health_file", "database_url", "broker_url"):
        if PREFIX + name.upper() in os.environ:  # absolute by now
            os.environ[PREFIX + name.upper()] = str(getattr(settings, name))
    secrets_dir = os.environ.get(PREFIX + "SECRETS_DIR")
    if secrets_dir is not None:
        os.environ[PREFIX + "SECRETS_DIR"] = str(Path(secrets_dir).absolute())
    for name in FILE_VARIABLES:
        if os.environ.get(name, "system") != "system":
            os.environ[name] = str(Path(os.environ[name]).absolute())
    with temporary_folder("work") as folder, chdir(folder):
        yield


def with_cache(settings: Settings) -> Settings:
    """Let payloads be kept in a temporary folder where this user has no place of its own: no home, a read-only root.

    Returns
    -------
    Settings
        With that folder; the variables of this process name it too, for those that it starts.
    """
    if settings.cache_dir is not None:
        return settings
    reason = why_not_made(cache_folder(settings).absolute())
    if reason is None:
        return settings
    own = ExitStack()
    atexit.register(own.close)
    folder = own.enter_context(temporary_folder("cache"))
    logger.warning(
        "%s: payloads are kept in %s until this worker ends; %sCACHE_DIR names another", reason, folder, PREFIX
    )
    os.environ[f"{PREFIX}CACHE_DIR"] = str(folder)
    return settings.replace(cache_dir=folder)


def _signs_folder(settings: Settings) -> Path:
    """Make the private folder where worker processes show that they live: by the health file, if nobody else can."""
    health = settings.health_path
    if health is not None and make_private_folder(health.parent):
        folder = health.with_name(f"{health.name}-signs")
        if make_private_folder(folder):
            forget_signs_of_the_dead(folder)
            return folder
    own = ExitStack()
    atexit.register(own.close)
    return own.enter_context(temporary_folder("signs"))


def threads_per_process(concurrency: int) -> int:
    """Return the threads that each of `concurrency` processes gets of this machine's cores: `MAX_THREADS` at most."""
    n_cores: int = joblib.cpu_count()
    return min(max(1, n_cores // concurrency), MAX_THREADS)
