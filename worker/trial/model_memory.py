"""Memory stays flat over hundreds of trials: what Keras, TensorFlow and Python keep of models that are gone."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gridfleet.worker.compiled_fit.scope import programs
from gridfleet.worker.compiled_fit.sharing.cache import MAX_PROGRAMS

_froze = False


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage in a block that imports what trials need, and never look at those modules again.

    TensorFlow's have a million objects, that stay; looking at them again and again took a quarter of the import.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _freeze_modules()


def forget_models(*, keep_programs: bool) -> None:
    """Drop what is kept of every model that nobody holds any more.

    Parameters
    ----------
    keep_programs : bool
        Whether what TensorFlow prepared of its functions stays, as programs that are used again want it. After
        Keras' own ``fit`` it has to go, for each fit has functions of its own; and now and then because of
        programs that are gone.
    """
    keras = sys.modules.get("keras")
    if keras is None:  # without Keras nothing is kept, and Python's own garbage collection will do
        return
    if keep_programs and programs.n_dropped < MAX_PROGRAMS:
        _number_names_anew()
    else:
        keras.utils.clear_session(free_memory=False)
        programs.n_dropped = 0
    _forget_gradients()
    _collect_garbage()


def _number_names_anew() -> None:
    """Do what ``keras.utils.clear_session`` does, but for TensorFlow's kernels."""
    global_state = sys.modules["keras.src.backend.common.global_state"]
    for tracker in ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER"):
        setattr(global_state, tracker, threading.local())


def _forget_gradients() -> None:
    """Drop traced custom gradients, which TensorFlow registers by name, for ever.

    The optimizers' clipping has one; its closure holds the whole graph: 4 MB a fit. Nothing asks for the
    gradients of a model that is gone.
    """
    tensorflow_ops = sys.modules.get("tensorflow.python.framework.ops")
    registry = getattr(getattr(tensorflow_ops, "gradient_registry", None), "_registry", {})
    for name in [name for name in registry if name.startswith("CustomGradient-")]:
        del registry[name]


def _collect_garbage() -> None:
    gc.collect()
    _freeze_modules()


def _freeze_modules() -> None:
    global _froze
    if not _froze and "tensorflow" in sys.modules:
        gc.freeze()  # looking at all of TensorFlow's objects takes 0.2 s each time
        _froze = True
