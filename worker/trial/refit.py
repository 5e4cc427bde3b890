"""The refit of a search: its best combination, chosen as scikit-learn does, fitted on all data and pickled for good."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from traceback import format_exc
from typing import Any

from sklearn import config_context
from sklearn.base import clone

from gridfleet.storage import models
from gridfleet.storage.database.connection import Database
from gridfleet.storage.database.retries import patiently
from gridfleet.storage.errors import NotPicklableError, SettingsError
from gridfleet.storage.exceptions import exception_to_json, qualified_name
from gridfleet.storage.fit_mode import FitMode
from gridfleet.storage.payloads.digest import digest_of
from gridfleet.storage.payloads.format import dump, size_of
from gridfleet.storage.settings import PREFIX, Settings
from gridfleet.storage.signer import Signer
from gridfleet.storage.trial_results import ModelResult, TrialResult
from gridfleet.storage.trials.held import Claim
from gridfleet.storage.trials.recorded import recorded_of_ended
from gridfleet.worker.compiled_fit import compiled_fit
from gridfleet.worker.trial import scores
from gridfleet.worker.trial.cross_validation import Candidates, Evaluation
from gridfleet.worker.trial.fit_warnings import WarningNotes
from gridfleet.worker.trial.keras_objects import keras_objects_of_the_script
from gridfleet.worker.trial.keras_state import has_made_models, keras_configured
from gridfleet.worker.trial.model_memory import forget_models

#: What the content of a model is.
KIND = "model"
#: ``error_type`` of a refit whose model is not stored: it is too large, can't be pickled, or its worker may not.
NOT_STORED = "model_not_stored"


def refit(
    settings: Settings,
    database: Database,
    claim: Claim,
    evaluation: Evaluation,
    candidates: Candidates,
    X: Any,
    y: Any,
    *,
    splits: Sequence[Any],
) -> TrialResult:
    """Fit the best combination of a search on all data, and pickle and sign what came out.

    Parameters
    ----------
    settings : Settings
        The workers' key, and how large a model may be.
    database : Database
        Where the search's scores are.
    claim : Claim
        The refit.
    evaluation : Evaluation
        What to fit.
    candidates : Candidates
        The combinations of the search.
    X, y : array-like
        The data, as given to ``fit``; `y` may be None.
    splits : sequence
        Those of the search.

    Returns
    -------
    TrialResult
        With the model, or with ``error``.

    Raises
    ------
    SearchGoesOnError
        If the search is open again.
    """
    notes = WarningNotes()
    process_id = os.getpid()
    fit_mode = FitMode(claim.fit_mode)
    n_splits = len(splits if candidates.halving is None else candidates.halving.splits(splits, 0))
    recorded, stopped = patiently(
        lambda: recorded_of_ended(database, claim.refit_of), patience_s=settings.max_runtime_s
    )
    with compiled_fit(fit_mode) as report:
        try:
            signer = settings.model_signer()
            _require_right(database)
            rows = scores.fit_and_score_rows_of(recorded, candidates, n_splits, stopped=stopped)
            pruned = scores.pruned_numbers(rows, n_splits)
            number = scores.best_index(scores.cv_results(rows, candidates, n_splits), candidates, pruned)
            params = (candidates.params if candidates.are_proposed else evaluation.params or candidates.params)[number]
            estimator, refit_time = _fitted(evaluation, notes, params, X, y)
            model = _packed(estimator, signer, claim, number)
            _require_size(model, settings)
        except (NotPicklableError, SettingsError, _NotStoredError) as error:
            result = TrialResult(splits=[], error_type=NOT_STORED, error=str(error))
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            result = TrialResult(
                splits=[],
                error_type=qualified_name(type(error)),
                error=format_exc(),
                exception=exception_to_json(error),
            )
        else:
            result = TrialResult(splits=[], mean_fit_time=refit_time, model=model)
        finally:
            if os.getpid() != process_id:  # a copy that the model forked, and that returned from its fit too
                os._exit(0)
            estimator = None
            if report.mode is not None or has_made_models():
                forget_models(keep_programs=report.mode is not FitMode.KERAS)
    fallback = None if report.mode is None else report.fallback_reason
    return replace(result, fit_mode=report.mode, fit_fallback_reason=fallback, warnings=notes.results())


class _NotStoredError(Exception):
    pass


def _fitted(
    evaluation: Evaluation, notes: WarningNotes, params: Mapping[str, Any], X: Any, y: Any
) -> tuple[Any, float]:
    """Fit as the refit of scikit-learn's searches does, in the state that trials are fitted in."""
    with (
        keras_configured(evaluation.keras_config),
        config_context(**evaluation.config),
        notes.of_a_fit(evaluation.warning_filters),
    ):
        # the parameters too, for they may be estimators
        estimator = clone(clone(evaluation.estimator)).set_params(**clone(dict(params), safe=False))
        fit_params = evaluation.arguments.get("fit_params") or {}
        started = time.time()
        if y is None:
            estimator.fit(X, **fit_params)
        else:
            estimator.fit(X, y, **fit_params)
        return estimator, time.time() - started


def _packed(estimator: Any, signer: Signer, claim: Claim, number: int) -> ModelResult:
    what = f"the fitted {type(estimator).__name__}"
    content = dump(KIND, (None, estimator), what=what, so="it can't be stored")
    # only now: what pickles a Keras model of a class of the script's registers that, for whoever loads it needs it
    objects = keras_objects_of_the_script()
    if objects is not None:
        content = dump(KIND, (objects, estimator), what=what, so="it can't be stored")
    digest, size = digest_of(content), size_of(content)
    signature = models.sign(signer, claim.search_id, claim.trial_id, number=number, digest=digest, size=size)
    return ModelResult(content, number, digest, size, signature)


def _require_right(database: Database) -> None:
    if not models.may_insert(database):
        raise _NotStoredError(
            "the worker's role may not store models; run deploy/database/roles.sh again, as after any upgrade that "
            "changes it (docs/operations.md), and then `gridfleet retry-failed`"
        )


def _require_size(model: ModelResult, settings: Settings) -> None:
    if model.size > settings.model_size_mb * 1_000_000:
        raise _NotStoredError(
            f"the best model takes {model.size / 1e6:,.1f} MB, above {PREFIX}MODEL_SIZE_MB={settings.model_size_mb} of "
            "its worker; raise it there, and then `gridfleet retry-failed`, or fit the best params in your script"
        )
