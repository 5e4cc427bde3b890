"""Keras' global state around a fit: its configuration, which travels with a search, and the names that it numbers."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: Settings that are variables of a module, with getter and setter; others are attributes of Keras' global state.
VARIABLES = {
    "floatx": "set_floatx",
    "epsilon": "set_epsilon",
    "image_data_format": "set_image_data_format",
    "max_epochs": "set_max_epochs",
    "max_steps_per_epoch": "set_max_steps_per_epoch",
    "is_nnx_enabled": "set_nnx_enabled",
}
#: What ``keras.config`` keeps in its global state; None where nothing was set. Its getter of the dtype policy would set
#: it. ``safe_mode_saving`` is what ``enable_unsafe_deserialization`` switches.
ATTRIBUTES = ("dtype_policy", "flash_attention", "safe_mode_saving", "interactive_logging", "traceback_filtering")
#: Where Keras keeps how often it gave each name.
NAMES = "object_name_uids"


def keras_config() -> dict[str, Any]:
    """Return Keras' configuration in this process and thread.

    Returns
    -------
    dict
        Plain values, which can be pickled; empty where Keras is not imported.
    """
    keras = sys.modules.get("keras")
    if keras is None:
        return {}
    config, tracker = _module("backend.config"), _module("backend.common.global_state").GLOBAL_STATE_TRACKER
    values = {name: getattr(config, name)() for name in VARIABLES if hasattr(config, name)}
    values |= {name: getattr(tracker, name, None) for name in ATTRIBUTES}
    if values["dtype_policy"] is not None:
        values["dtype_policy"] = keras.dtype_policies.serialize(values["dtype_policy"])
    tensorflow = sys.modules.get("tensorflow")
    return values | {"run_eagerly": bool(tensorflow and tensorflow.config.functions_run_eagerly())}


def set_keras_config(values: Mapping[str, Any]) -> None:
    """Make a configuration that of this process and thread, where Keras is imported.

    Parameters
    ----------
    values : mapping
        As `keras_config` returned it, here or elsewhere; an empty one changes nothing.
    """
    if not values:
        return
    keras = sys.modules["keras"]
    config, tracker = _module("backend.config"), _module("backend.common.global_state").GLOBAL_STATE_TRACKER
    now = keras_config()
    for name, setter in VARIABLES.items():
        if name in values and values[name] != now.get(name):
            getattr(config, setter)(values[name])
    for name in ATTRIBUTES:
        value = values.get(name)
        if name == "dtype_policy" and value is not None:
            value = keras.dtype_policies.get(value)
        setattr(tracker, name, value)
    if values["run_eagerly"] != now["run_eagerly"]:
        importlib.import_module("tensorflow").config.run_functions_eagerly(values["run_eagerly"])


@contextmanager
def keras_configured(values: Mapping[str, Any]) -> Iterator[None]:
    """Fit as in a fresh process: with a configuration, and names numbered from the beginning.

    Parameters
    ----------
    values : mapping
        The configuration, as `keras_config` returns it; empty: this process's own.
    """
    if values and not _can_import_keras():  # then nothing here needs it, or its fit says so
        values = {}
    before = keras_config()
    with names_numbered_anew():
        set_keras_config(values)
        try:
            yield
        finally:
            set_keras_config(before)


@contextmanager
def names_numbered_anew() -> Iterator[None]:
    """Let Keras number names (``auc``, ``auc_1``) in a block as if no model had been made in this process.

    What is made after the block gets names that neither the block nor what was before it has.
    """
    if "keras" not in sys.modules:  # what is made in the block is the first
        yield
        return
    state = _module("backend.common.global_state")
    tracker = state.GLOBAL_STATE_TRACKER
    before = getattr(tracker, NAMES, {})
    setattr(tracker, NAMES, defaultdict(int))
    try:
        yield
    finally:
        if state.GLOBAL_STATE_TRACKER is tracker:  # else the block called clear_session, which forgets all names
            names = getattr(tracker, NAMES)
            for name, times in before.items():
                names[name] = max(names[name], times)


@contextmanager
def any_model_loads() -> Iterator[None]:
    """Load signed payloads in a block whatever their models consist of: Lambda layers with functions of Python, too.

    What their script's Keras refuses was refused there; a payload is a pickle, so safe mode keeps nothing out here.
    """
    if "keras" not in sys.modules:
        yield
        return
    tracker = _module("backend.common.global_state").GLOBAL_STATE_TRACKER
    before = getattr(tracker, "safe_mode_saving", None)
    tracker.safe_mode_saving = False
    try:
        yield
    finally:
        tracker.safe_mode_saving = before


def has_made_models() -> bool:
    """Whether Keras has named anything in this thread since its names were forgotten."""
    state = sys.modules.get("keras.src.backend.common.global_state")
    return bool(state is not None and getattr(state.GLOBAL_STATE_TRACKER, NAMES, None))


def _can_import_keras() -> bool:
    try:
        importlib.import_module("keras")
    except ImportError:
        return False
    return True


def _module(name: str) -> Any:
    return sys.modules[f"keras.src.{name}"]
