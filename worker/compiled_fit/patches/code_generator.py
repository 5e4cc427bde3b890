"""XLA's older generator of code for loops, for the first compilation of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import tensorflow as tf

from gridfleet.worker.compiled_fit.patches.patch import Patch, Replacement

#: XLA's older code generator for loops. Its newer one takes a third longer to compile a small model, and computes each
#: random number several times: a step with Dropout took 690 us by it, 39 us by the older one, 154 us without XLA.
OLDER_CODE_GENERATOR = "--xla_cpu_use_fusion_emitters=false"
#: Releases of TensorFlow that have the flag; XLA ends the process at one that it does not know.
HAVE_OLDER_CODE_GENERATOR = ("2.21.",)


def older_code_generator() -> AbstractContextManager[None]:
    """Return a block in which XLA uses its older code generator, unless ``XLA_FLAGS`` says which.

    XLA reads the variable once in a process, when it first compiles; it is put back, for other programs that this
    process may start.
    """
    return _patch.installed()


def flags_with_older_generator(flags: str) -> str | None:
    """Return what ``XLA_FLAGS`` should be, or None if it should stay.

    Parameters
    ----------
    flags : str
        What it is: flags, or the name of a file with flags.
    """
    is_file_name = bool(flags) and not flags.lstrip().startswith("-")
    name = OLDER_CODE_GENERATOR.partition("=")[0]
    if name in flags or is_file_name or not tf.__version__.startswith(HAVE_OLDER_CODE_GENERATOR):
        return None
    return f"{flags} {OLDER_CODE_GENERATOR}".strip()


def _replacements() -> Iterator[Replacement]:
    flags = flags_with_older_generator(os.environ.get("XLA_FLAGS", ""))
    if flags is not None:
        yield Replacement(os.environ, "XLA_FLAGS", flags)


_patch = Patch(_replacements)
