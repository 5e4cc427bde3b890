"""A fit that is looked at between epochs, in whichever loop it runs: as each ends, and where somebody wants to act.

A callback would do, but for the graph: a loop inside it is left at every epoch for the sake of a callback, and here
only where it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gridfleet.worker.compiled_fit.types import Callback, CallbackList, Callbacks, Logs, Model


class Watch(Protocol):
    """Looks at the epochs of one fit."""

    def next_stop(self, epoch: int) -> int:
        """Return after how many epochs it wants to act next, of a model that has trained for some."""

    def epoch_ended(self, epoch: int, logs: Logs, *, goes_on: bool) -> None:
        """Note an epoch, and act where that is wanted; may raise, which ends the fit.

        Parameters
        ----------
        epoch : int
            How many have ended.
        logs : dict
            As callbacks get them.
        goes_on : bool
            Whether another epoch follows.
        """


#: Returns who looks at the fit of a model that begins; None: nobody.
Watching = Callable[[Model], "Watch | None"]


def with_watch(callbacks: Callbacks | CallbackList, watch: Watch) -> Any:
    """Return callbacks for a loop of Keras' own, with one that tells who looks at the fit."""
    from keras.src import callbacks as keras_callbacks

    class TellWatch(keras_callbacks.Callback):  # type: ignore[misc, unused-ignore]
        async_safe = True

        def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
            goes_on = not self.model.stop_training and epoch + 1 < self.params["epochs"]
            watch.epoch_ended(epoch + 1, dict(logs or {}), goes_on=goes_on)

    added: Callback = TellWatch()
    if isinstance(callbacks, keras_callbacks.CallbackList):
        added.set_model(callbacks.model)
        added.set_params(callbacks.params)
        callbacks.append(added)
        return callbacks
    if not callbacks:
        return [added]
    # behind the user's, which may stop the training
    return [*callbacks, added] if isinstance(callbacks, (list, tuple)) else [callbacks, added]
