"""On what a trial is evaluated: host, processor, threads, releases; what may make another result of the same trial."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gridfleet.storage.texts import digest_of_text
from gridfleet.storage.versions import installed_packages, installed_versions
from gridfleet.worker.guards.memory import THREAD_VARIABLES

#: Flags of a processor that libraries choose their kernels by.
_KERNEL_FLAGS = ("sse", "ssse", "avx", "fma", "amx", "f16c", "bmi", "asimd", "sve", "neon")


def machine() -> dict[str, Any]:
    """Describe this process and its machine.

    Returns
    -------
    dict
        Plain values: ``host``, ``system``, ``cpu``, ``cpu_flags``, ``threads`` by the variables that libraries read
        and, where TensorFlow is imported, its own, ``packages`` as the digest of their list, and the releases.
    """
    return {**_of_process(), "threads": _threads()}


def machine_text() -> str:
    """Return what `machine` says as JSON, the same text on the same machine."""
    return json.dumps(machine(), sort_keys=True, indent=1)


@cache
def _of_process() -> dict[str, Any]:
    name, flags = _processor()
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": name,
        "cpu_flags": flags,
        "packages": digest_of_text(installed_packages()),
        **installed_versions(),
    }


def _threads() -> dict[str, str | int]:
    threads: dict[str, str | int] = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    if "tensorflow" in sys.modules:
        threading = sys.modules["tensorflow"].config.threading
        threads["tensorflow intra-op"] = threading.get_intra_op_parallelism_threads()
        threads["tensorflow inter-op"] = threading.get_inter_op_parallelism_threads()
    return threads


def _processor() -> tuple[str | None, str | None]:
    """Return the name of the processor, and the flags that matter, as Linux has them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # macOS
        return platform.processor() or None, None
    values: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    flags = values.get("flags", values.get("Features", "")).split()
    kept = sorted(flag for flag in flags if flag.startswith(_KERNEL_FLAGS))
    return values.get("model name") or platform.machine(), " ".join(kept) or None
