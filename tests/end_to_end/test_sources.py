"""Modules of the user's own travel to the workers as source: whatever a script can do with them, its models can."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gridfleet import GridSearchCV, open_search
from gridfleet.storage.settings import Settings

HELPERS = {
    "__init__.py": "from helpers.base import Base, cached, kind, guard",
    "base.py": """
        import functools, threading

        guard = threading.Lock()

        class Base:
            pass

        @functools.lru_cache
        def cached(n):
            return n if n < 2 else cached(n - 1) + cached(n - 2)

        @functools.singledispatch
        def kind(value):
            return "any"

        @kind.register
        def _(value: int):
            return "int"
    """,
    "lazy.py": "VALUE = 7",
    "words.txt": "spam",
    "checks.py": """
        import pickle
        from concurrent.futures import ProcessPoolExecutor
        from pathlib import Path

        from sklearn.base import BaseEstimator

        from helpers import Base, cached, guard, kind

        def square(n):
            return n * n

        POWERS = {square: 2}

        class Checks(Base, BaseEstimator):
            def __init__(self, check="", function=None):
                self.check = check
                self.function = function

            def fit(self, X, y=None):
                self.result_ = float(getattr(self, self.check)())
                return self

            def score(self, X, y=None):
                return self.result_

            def relative(self):
                from .lazy import VALUE
                return VALUE

            def absolute(self):
                import helpers.lazy
                return helpers.lazy.VALUE

            def is_a_base(self):
                from helpers.base import Base
                return isinstance(self, Base)

            def caches(self):
                return cached(30)

            def dispatches(self):
                return kind(1) == "int"

            def locks(self):
                with guard:
                    return 1

            def pickles_itself(self):
                return pickle.loads(pickle.dumps(self)).check == self.check

            def has_a_pool(self):
                with ProcessPoolExecutor(1) as pool:
                    return sum(pool.map(square, [1, 2]))

            def reads(self):
                return Path(__file__).with_name("words.txt").read_text().strip() == "spam"

            def compares(self):
                return POWERS[self.function]
    """,
}
VALUES = {
    "relative": 7,
    "absolute": 7,
    "is_a_base": 1,
    "caches": 832040,
    "dispatches": 1,
    "locks": 1,
    "pickles_itself": 1,
    "has_a_pool": 5,
    "reads": 1,
}
SCRIPT = """
    import functools
    from sklearn.base import BaseEstimator
    from gridfleet import GridSearchCV
    from helpers.checks import Checks, square

    def cube(n):
        return n ** 3

    POWERS = {cube: 3}

    @functools.lru_cache
    def cached(n):
        return n if n < 2 else cached(n - 1) + cached(n - 2)

    class Mine(BaseEstimator):
        def __init__(self, function=None):
            self.function = function

        def fit(self, X, y=None):
            from parts import head
            self.result_ = float(POWERS[self.function] + head() + cached(10))
            return self

        def score(self, X, y=None):
            return self.result_

    def scores(estimator, grid):
        search = GridSearchCV(estimator, grid, cv=2, verbose=0, refit=False, error_score="raise")
        return search.fit([[0.0]] * 4, [0, 1, 0, 1]).cv_results_["mean_test_score"].tolist()

    print(scores(Checks(), {"check": CHECKS}))
    print(scores(Checks(check="compares"), {"function": [square]}))
    print(scores(Mine(), {"function": [cube]}))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a project with its code in ``src``."""
    source = tmp_path / "project" / "src"
    (source / "helpers").mkdir(parents=True)
    for name, text in HELPERS.items():
        (source / "helpers" / name).write_text(textwrap.dedent(text))
    (source / "parts.py").write_text("def head():\n    import more\n    return more.VALUE\n")
    (source / "more.py").write_text("VALUE = 100\n")
    return source


def test_models_do_with_the_scripts_modules_what_the_script_can(
    database_settings: Settings,
    start_worker: Callable[..., object],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    project: Path,
) -> None:
    start_worker(database_settings)

    ran = run_script(project, SCRIPT.replace("CHECKS", repr(list(VALUES))), **database_settings.as_variables())

    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [str([float(value) for value in VALUES.values()]), "[2.0]", "[158.0]"]


EDITED = """
    from sklearn.base import BaseEstimator

    def plain(value):
        return value

    class Reads(BaseEstimator):
        def __init__(self, function=None):
            self.function = function

        def fit(self, X, y=None):
            import settings_of_mine
            self.result_ = self.function(settings_of_mine.VALUE)
            return self

        def score(self, X, y=None):
            return self.result_
"""


def test_an_edited_module_counts_at_once_and_results_can_be_read_without_it(
    configured: Settings, start_worker: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_worker(configured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_of_mine.py").write_text(textwrap.dedent(EDITED))
    values = []
    for value in (1.0, 2.0):
        (tmp_path / "settings_of_mine.py").write_text(f"VALUE = {value}\n")
        with monkeypatch.context() as script:
            script.syspath_prepend(tmp_path)
            import models_of_mine

            grid = {"function": [models_of_mine.plain]}
            search = GridSearchCV(models_of_mine.Reads(), grid, cv=2, refit=False, verbose=0, name=f"of-{value:.0f}")
            values += search.fit([[0.0]] * 4, [0, 1, 0, 1]).cv_results_["mean_test_score"].tolist()
        del sys.modules["models_of_mine"]

    assert values == [1.0, 2.0]
    chosen = open_search("of-1").cv_results_["params"][0]["function"]
    assert (chosen.__module__, chosen(3)) == ("models_of_mine", 3)
    assert "models_of_mine" not in sys.modules
