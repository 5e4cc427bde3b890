"""A user's script, which may be killed at any moment and is started again: ``python -m tests.soak.script NAME NUMBER``.

Exit status 0 when its search is done and scores as scikit-learn's, 3 if it is done and scores otherwise, anything else
if something was in the way.
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.model_selection import GridSearchCV as ScikitLearnGridSearchCV

from gridfleet import GridSearchCV
from tests.soak.data import N_SPLITS, TAG, Y, own_rows
from tests.soak.models import Telling

SPACE = {"value": list(range(10))}
#: Seconds of each of its fits.
FIT_S = 0.4
OTHER_SCORES = 3


def main(name: str, number: int) -> int:
    X = own_rows(number)
    search = GridSearchCV(
        Telling(seconds=FIT_S),
        SPACE,
        cv=N_SPLITS,
        refit_on="fleet",
        name=name,
        load_if_exists=True,
        tags={TAG: str(number)},
        verbose=0,
    ).fit(X, Y)
    wanted = ScikitLearnGridSearchCV(Telling(), SPACE, cv=N_SPLITS).fit(X, Y)
    for split in range(N_SPLITS):
        column = f"split{split}_test_score"
        if not np.array_equal(search.cv_results_[column], wanted.cv_results_[column]):
            print(f"{column} is {search.cv_results_[column]}, scikit-learn has {wanted.cv_results_[column]}")
            return OTHER_SCORES
    if search.best_estimator_.seen_ != wanted.best_estimator_.seen_ or search.best_params_ != wanted.best_params_:
        print(f"its best model has {search.best_params_}, scikit-learn's {wanted.best_params_}")
        return OTHER_SCORES
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
