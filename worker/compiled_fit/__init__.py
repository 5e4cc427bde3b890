"""Keras' fit with its loop inside the graph: the same result, without Python at every batch.

Inside `compiled_fit`, ``fit``, ``evaluate`` and ``predict`` of every Keras model run as compiled loops, wherever
they are called: scikeras, Keras' own scikit-learn wrappers, a pipeline, an estimator of one's own.
"""

from gridfleet.storage.fit_mode import FitMode
from gridfleet.worker.compiled_fit.report import FitReport
from gridfleet.worker.compiled_fit.scope import compiled_fit

__all__ = ["FitMode", "FitReport", "compiled_fit"]
