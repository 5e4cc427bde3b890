"""Which certificate authorities this system trusts: what `sslrootcert=system` means.

PostgreSQL's client library leaves that to OpenSSL, and the one in psycopg's wheel looks in a folder of the machine that
built it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gridfleet.storage.errors import SettingsError
from gridfleet.storage.settings import PREFIX

#: What asks for them, in a URL or in `PGSSLROOTCERT`.
SYSTEM = "system"
#: Where systems keep them in one file.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch, Gentoo
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Red Hat, Fedora
    "/etc/pki/tls/certs/ca-bundle.crt",  # older ones of them
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)


def of_the_system(query: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a connection that name the system's file, if a URL or a variable asks for it.

    Parameters
    ----------
    query : mapping
        The options of the URL.

    Raises
    ------
    SettingsError
        If the system has none.
    """
    if query.get("sslrootcert", os.environ.get("PGSSLROOTCERT")) != SYSTEM:
        return {}
    mode = query.get("sslmode", os.environ.get("PGSSLMODE", "verify-full"))
    if mode != "verify-full":  # refused by PostgreSQL's library: anybody can have a certificate of a public authority
        return {}
    return {"sslrootcert": str(_bundle()), "sslmode": mode}


def _bundle() -> Path:
    # Python's own OpenSSL, which SSL_CERT_FILE leads as well, may be of another system too
    candidates = [ssl.get_default_verify_paths().cafile, *BUNDLES]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    raise SettingsError(
        f"{PREFIX}DATABASE_URL: sslrootcert=system, and this system has no file of certificate authorities; install "
        "its package ca-certificates, or name a file, as in sslrootcert=/path/ca.crt"
    )
