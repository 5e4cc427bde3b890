"""What an object is, as a digest that no process computes otherwise, and that every change of it changes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from gridfleet.scheduler.submission.fingerprint import NotSeenError, fingerprint

SCRIPT = """
import dataclasses, enum, functools, pickle, sys
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.pipeline import make_pipeline
from gridfleet.scheduler.submission.fingerprint import fingerprint
from gridfleet.storage.payloads.format import dump, load

NAMES = {"alpha", "beta", "gamma", "delta", "epsilon"}
TABLE = {"a": [1, 2.5, -0.0], "b": np.arange(6).reshape(2, 3).T}

class Kind(enum.Enum):
    ONE = 1
    TWO = "two"
    def shown(self):
        return f"{self.value}"

@dataclasses.dataclass(frozen=True)
class Setting:
    kind: Kind = Kind.ONE
    sizes: tuple = (1, 2)

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n in {"one", "two", "three", "four"} or (n != 0 and even(n - 1))

def scaled(by):
    def scale(X, *, names=frozenset(("x", "y", "z"))):
        import math
        return X * by * len(NAMES) * math.pi if even(4) else TABLE
    return scale

class Selector(TransformerMixin, BaseEstimator):
    limits = frozenset(("low", "high", "middle"))
    def __init__(self, function=None, setting=Setting()):
        self.function, self.setting = function, setting
    @property
    def known(self):
        return self.limits
    @staticmethod
    def helper(x):
        return {str(x) for x in NAMES}
    @classmethod
    def make(cls):
        return super().__new__(cls)
    def fit(self, X, y=None, sample_weight=None):
        return self
    def transform(self, X):
        return self.function(X)

@functools.lru_cache(maxsize=3)
def cached(x):
    return even(x)

objects = {
    "estimator": make_pipeline(Selector(scaled(2)), LogisticRegression(C=0.5, random_state=1)),
    "scorer": make_scorer(lambda y, found: accuracy_score(y, found) if cached(2) else 0),
    "params": {"kind": Kind.TWO, "class": Selector, "partial": functools.partial(odd, 3), "ufunc": np.tanh},
}
for name, one in objects.items():
    print(name, fingerprint(one, name))
if sys.argv[1] == "write":
    with open(sys.argv[2], "wb") as file:
        file.write(b"".join(dump("all", objects, what="all")))
else:
    with open(sys.argv[2], "rb") as file:
        for name, one in load(memoryview(file.read()))[1].items():
            print(name, fingerprint(one, name))
"""


def test_processes_of_other_hash_seeds_and_what_travelled_have_the_same_digests(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(seed: str, what: str) -> list[str]:
        command = [sys.executable, str(tmp_path / "script.py"), what, str(tmp_path / "payload")]
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    written = run("1", "write")
    read = run("2", "read")

    assert [line.partition(" ")[0] for line in written] == ["estimator", "scorer", "params"]
    assert read == written * 2


def of(source: str, **values: Any) -> Any:
    """Return the function or class ``it`` of a script."""
    script: dict[str, Any] = {"__name__": "__main__", **values}
    exec(source, script)
    return script["it"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (of("it = lambda x: x + 1"), of("it = lambda x: x + 2")),
        (of("it = lambda x: x.a"), of("it = lambda x: x.b")),
        (of("it = lambda x, y=1: x"), of("it = lambda x, y=2: x")),
        (of("it = lambda x: f(x)\nf = lambda x: 1"), of("it = lambda x: f(x)\nf = lambda x: 2")),
        (of("it = lambda x: g", g=np.zeros(3)), of("it = lambda x: g", g=np.ones(3))),
        (of("it = (lambda a: lambda: a)(1)"), of("it = (lambda a: lambda: a)(2)")),
        (of("it = lambda x: x in {1, 2}"), of("it = lambda x: x in {1, 3}")),
        (of("def it(x):\n try: x()\n finally: x()"), of("def it(x):\n try: x()\n except ValueError: x()")),
        (of("class it:\n  a = 1"), of("class it:\n  a = 2")),
        (of("class it:\n  def f(self): return 1"), of("class it:\n  def f(self): return 2")),
        (of("class it(dict): pass"), of("class it(list): pass")),
        (of("class b:\n  a = 1\nclass it(b): pass"), of("class b:\n  a = 2\nclass it(b): pass")),
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("1", 1),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.arange(4), np.arange(4.0)),
        (np.arange(4).reshape(2, 2), np.arange(4).reshape(2, 2).T.copy().T),
        (np.float32(1), np.float64(1)),
        (LogisticRegression(C=1), LogisticRegression(C=2)),
        (np.random.RandomState(1), np.random.RandomState(2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (np.tanh, np.sinh),
        (stats.loguniform(1, 10), stats.loguniform(1, 100)),
        (make_scorer(max), make_scorer(min)),
    ],
)
def test_what_differs_has_another_digest(one: Any, other: Any) -> None:
    assert fingerprint(one, "it") == fingerprint(one, "it") != fingerprint(other, "it")


def test_what_does_not_matter_changes_no_digest() -> None:
    first = of("# a comment\nit = lambda x: x + UNKNOWN", other=1)
    second = of("\n\nit = lambda x: x + UNKNOWN", other=2)

    assert fingerprint(first, "it") == fingerprint(second, "it")
    np.random.random()  # noqa: NPY002 - the random state of the process
    distribution = stats.loguniform(1, 10)
    before = fingerprint(distribution, "it")
    np.random.random()  # noqa: NPY002
    assert fingerprint(distribution, "it") == before


def test_what_refers_to_itself_is_seen_into() -> None:
    holds: list[Any] = []
    holds.append(holds)
    deeper: list[Any] = [[holds]]

    assert fingerprint(holds, "it") != fingerprint(deeper, "it")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (of("it = lambda: lock", lock=threading.Lock()), r"^it → <lambda> → lock: a lock can't be seen into \("),
        ({"steps": [(n for n in ())]}, r"^it → steps: a generator can't be seen into"),
        (of("it = lambda: made", made=types.ModuleType("made")), "made: the module made has no file"),
        (functools.reduce(lambda nested, _: [nested], range(100_000), []), "^it is nested too deeply"),
        (
            make_pipeline(StandardScaler(), FunctionTransformer(of("it = lambda X: lock", lock=threading.RLock()))),
            "lock: a RLock can't be seen into",
        ),
    ],
    ids=["lock", "generator", "module", "deep", "in a pipeline"],
)
def test_what_can_not_be_seen_into_is_refused_with_its_place(value: Any, sentence: str) -> None:
    with pytest.raises(NotSeenError, match=sentence):
        fingerprint(value, "it")
