"""The command for the fleet's keys."""

from __future__ import annotations

from gridfleet.scheduler.cli.output import show


def public_key() -> None:
    """Print the public key of GRIDFLEET_SECRET_KEY.

    It is what workers get, as GRIDFLEET_PUBLIC_KEY.
    """
    from gridfleet.storage.settings import load_settings

    show(load_settings().signer().public_key)


def worker_key() -> None:
    """Print the workers' own key, with which they sign models.

    It belongs to GRIDFLEET_SECRET_KEY, and is a secret that workers get, as GRIDFLEET_WORKER_KEY.
    """
    from gridfleet.storage.settings import load_settings
    from gridfleet.storage.signer import worker_key_of

    show(worker_key_of(load_settings().key()))
