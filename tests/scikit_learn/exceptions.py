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

#: Tests of many searches, which complete runs have, and which test shows the same of a fleet in every run.
COMPLETE: dict[str, str] = {
    "test_SearchCV_with_fit_params": "test_scalar_fit_param",
    "test_aggressive_elimination": "test_resource_parameter",
    "test_base_estimator_inputs": "test_resource_parameter",
    "test_callable_multimetric_clf_all_fits_fail": "test_callable_multimetric_error_failing_clf",
    "test_callable_multimetric_confusion_matrix": "test_callable_multimetric_same_as_list_of_strings",
    "test_callable_single_metric_same_as_single_string": "test_callable_multimetric_same_as_list_of_strings",
    "test_classes__property": "test_gridsearch_no_predict",
    "test_custom_run_search": "test_a_subclass_with_arguments_and_rounds_of_its_own of tests/scheduler/estimators",
    "test_cv_results": "test_halving_random_search_list_of_dicts",
    "test_cv_results_dtype_issue_29074": "test_cv_results_multi_size_array",
    "test_grid_search_allows_nans": "test_grid_search_failing_classifier",
    "test_grid_search_correct_score_results": "test_grid_search_score_method",
    "test_grid_search_groups": "the groups of tests/end_to_end/test_same_answer.py",
    "test_grid_search_no_score": "test_grid_search_score_method",
    "test_grid_search_sparse_scoring": "test_grid_search_sparse",
    "test_grid_search_with_multioutput_data": "test_y_as_list, test_search_with_2d_array",
    "test_groups_support": "the groups of tests/end_to_end/test_same_answer.py",
    "test_min_max_resources": "test_resource_parameter",
    "test_n_features_in": "test_whatever_scikit_learn_s_refit_is_the_fleet_s_is of tests/end_to_end",
    "test_n_iterations": "test_resource_parameter",
    "test_nan_handling": "test_grid_search_failing_classifier",
    "test_pandas_input": "a pandas frame of tests/end_to_end/test_same_answer.py",
    "test_random_search": "test_halving_random_search_list_of_dicts",
    "test_random_search_cv_results": "test_grid_search_cv_results",
    "test_random_search_cv_results_multimetric": "test_grid_search_cv_results_multimetric",
    "test_random_search_discrete_distributions": "test_halving_random_search_list_of_dicts",
    "test_refit": "test_pickle, whose search refits",
    "test_refit_callable": "test_refit_callable_multi_metric",
    "test_scalar_fit_param_compat": "test_scalar_fit_param",
    "test_search_cv_pairwise_property_equivalence_of_precomputed": "test_grid_search_precomputed_kernel",
    "test_search_cv_results_none_param": "test_grid_search_pipeline_steps",
    "test_search_cv_results_rank_tie_breaking": "test_grid_search_cv_results",
    "test_search_cv_sample_weight_equivalence": "the weights of tests/end_to_end/test_same_answer.py",
    "test_search_html_repr": "test_search_estimator_param",
    "test_search_with_estimators_issue_29157": "test_search_estimator_param",
    "test_stochastic_gradient_loss_param": "test_predict_proba_disabled",
    "test_unsupported_sample_weight_scorer": "test_search_callbacks_receive_sample_weight",
}
