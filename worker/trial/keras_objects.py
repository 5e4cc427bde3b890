"""The classes and functions that a script registered with Keras: on the workers for one trial, by their names.

A model instance travels as Keras saves it, with names of classes that only the script has; a loss may be given by its
registered name. So what is registered travels too, ahead of all that may need it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle

from gridfleet.storage.sources.local import is_installed

#: What was there before a payload registered something, by name; None: nothing.
_replaced: dict[str, Any] = {}


class KerasObjects:
    """What a script registered; registered where it is unpickled, until `registered_for_a_trial` is left.

    Parameters
    ----------
    objects : dict
        Classes and functions by the names that Keras finds them by.
    """

    def __init__(self, objects: dict[str, Any]) -> None:
        self.objects = objects

    def register(self) -> None:
        """Register all of it with Keras, until `registered_for_a_trial` is left."""
        if not self.objects:
            return
        from keras.saving import get_custom_objects
        from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

        for name, obj in self.objects.items():
            _replaced.setdefault(name, get_custom_objects().get(name))
            get_custom_objects()[name] = obj
            if ">" in name:  # by the decorator, which notes the name too
                GLOBAL_CUSTOM_NAMES[obj] = name

    def __reduce__(self) -> tuple[Any, ...]:
        # one by one: what can't be pickled, or loaded there, stops no search that does not use it
        return _register, ({name: pickled for name, obj in self.objects.items() if (pickled := _pickled(obj))},)


def keras_objects_of_the_script() -> KerasObjects | None:
    """Return what was registered in this process by code that is no installed package's; None without Keras."""
    if "keras" not in sys.modules:
        return None
    from keras.saving import get_custom_objects

    found = {name: obj for name, obj in get_custom_objects().items() if not _is_installed(obj)}
    return KerasObjects(found) if found else None


@contextmanager
def registered_for_a_trial() -> Iterator[None]:
    """Take back at the end what payloads registered meanwhile."""
    try:
        yield
    finally:
        if _replaced:
            from keras.saving import get_custom_objects
            from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

            for name, before in _replaced.items():
                _forget(get_custom_objects().pop(name, None))
                if before is not None:
                    get_custom_objects()[name] = before
                    if ">" in name:  # it may be the very object that was registered again
                        GLOBAL_CUSTOM_NAMES[before] = name
            _replaced.clear()


def can_travel(obj: Any) -> bool:
    """Whether a class or function can be pickled, and so reaches the workers."""
    return _pickled(obj) is not None


def _pickled(obj: Any) -> bytes | None:
    try:
        return cloudpickle.dumps(obj)  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - whatever a user's __reduce__ raises
        return None


def _loaded(pickled: bytes) -> Any:
    try:
        return pickle.loads(pickled)  # noqa: S301 - a part of a payload that is signed
    except Exception:  # noqa: BLE001 - of a package that is not here
        return None


def _register(pickled: dict[str, bytes]) -> KerasObjects:
    arrived = KerasObjects({name: obj for name, each in pickled.items() if (obj := _loaded(each)) is not None})
    arrived.register()
    return arrived


def _forget(obj: Any) -> None:
    from keras.src.saving.object_registration import GLOBAL_CUSTOM_NAMES

    with suppress(TypeError):  # no hash, so it has no name
        GLOBAL_CUSTOM_NAMES.pop(obj, None)


def _is_installed(obj: Any) -> bool:
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return file is not None and is_installed(file)
