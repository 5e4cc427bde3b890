"""scikit-learn's tests that can't hold on a fleet, each with the reason (docs/scikit-learn.md explains them)."""

_IN_THIS_PROCESS = (
    "the test looks at objects that the estimators changed while fitting, which happens in other processes"
)
_INNER_CALLBACKS = "callbacks of the estimators are called on the workers, whose copies this process does not see"
_SHARED_GENERATOR = "the scorer draws from one random generator that all fits share, which copies of it do not"

#: Name of the test, with its parameters: why it is expected to fail.
EXCEPTIONS: dict[str, str] = {
    **{
        f"test_multi_metric_search_forwards_metadata[{case}]": _IN_THIS_PROCESS
        for case in ("GridSearchCV-param_grid", "RandomizedSearchCV-param_distributions")
    },
    **{
        f"test_search_callbacks_propagation[search{number}-{refit}]": _INNER_CALLBACKS
        for number in (0, 1)
        for refit in (True, False)
    },
    **{
        f"test_cv_results[{halving}]": _SHARED_GENERATOR for halving in ("HalvingGridSearchCV", "HalvingRandomSearchCV")
    },
    **{
        f"test_base_estimator_inputs[{halving}]": _IN_THIS_PROCESS
        for halving in ("HalvingGridSearchCV", "HalvingRandomSearchCV")
    },
}
