"""Why trials failed, in one line each."""

from __future__ import annotations

import textwrap

import pytest

from gridfleet.scheduler.reports.causes import SHOWN, by_cause, cause, ranges
from gridfleet.scheduler.reports.trial_reader import FailedTrial

BEFORE = """
    Traceback (most recent call last):
      File "script.py", line 3, in build
        model.fit(X, y)
"""
CAUSES = [
    ("", "", ""),
    ("ValueError: no", "", "ValueError: no"),
    ("KeyError: 'x'", "", "KeyError: 'x'"),
    ("AssertionError", "", "AssertionError"),
    ("sklearn.utils._param.InvalidParameterError: C is negative", "", "InvalidParameterError: C is negative"),
    ("ValueError: one\n  of two lines\n\nand more", "", "ValueError: one of two lines"),
    ("script.Odd: my own", "script.Odd", "Odd: my own"),
    # Keras says first where, and last what it was called with
    (
        """
        ValueError: Exception encountered when calling Sequential.call().

        \x1b[1mInput 0 of layer 'dense' is incompatible with the layer\x1b[0m

        Arguments received by Sequential.call():
          • inputs=tf.Tensor(shape=(32, 8), dtype=float32)
          • kwargs=<class 'inspect._empty'>
        """,
        "",
        "ValueError: Input 0 of layer 'dense' is incompatible with the layer",
    ),
    (
        """
        ValueError: Could not infer the shape of 'own'. Error encountered:

        Dimensions must be equal, but are 8 and 3
        """,
        "",
        "ValueError: Could not infer the shape of 'own'. Error encountered: Dimensions must be equal, but are 8 and 3",
    ),
    # TensorFlow has the stack of the graph's node in its message
    (
        """
        tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:

        Detected at node compile_loss/loss defined at (most recent call last):
          File "script.py", line 7, in <module>

          File "keras/src/losses/losses.py", line 2359, in sparse_categorical_crossentropy

        Received a label value of 3 which is outside the valid range of [0, 2).
        \t [[{{node compile_loss/loss}}]] [Op:__inference_406]
        """,
        "",
        "InvalidArgumentError: Received a label value of 3 which is outside the valid range of [0, 2).",
    ),
    ("the process ended with signal 9 (SIGKILL)", "worker_lost", "the process ended with signal 9 (SIGKILL)"),
]


@pytest.mark.parametrize(("error", "error_type", "shown"), CAUSES)
@pytest.mark.parametrize("before", ["", BEFORE])
def test_a_cause_is_the_sentence_that_says_what_was_wrong(error: str, error_type: str, shown: str, before: str) -> None:
    if before and not error:
        return
    assert cause(textwrap.dedent(before) + textwrap.dedent(error), error_type or None) == shown


def test_nothing_was_said_but_the_kind_of_error() -> None:
    assert cause(None, "worker_lost") == "worker_lost"


def test_a_long_cause_is_cut() -> None:
    assert cause("ValueError: " + "x" * 10_000)[-2:] == "x…"
    assert len(cause("ValueError: " + "x" * 10_000)) == SHOWN


def test_the_most_frequent_cause_comes_first() -> None:
    errors = ["ValueError: a", "ValueError: b", "ValueError: b", None]
    failed = [FailedTrial(number, {}, "E", error, 1, None) for number, error in enumerate(errors)]

    assert [(one.cause, one.numbers) for one in by_cause(failed)] == [
        ("ValueError: b", "1-2"),
        ("ValueError: a", "0"),
        ("E", "3"),
    ]


def test_objects_that_only_their_addresses_tell_apart_have_one_cause() -> None:
    errors = [f"TypeError: <Model object at 0x7f{number}a0> has no fit" for number in range(2)]
    failed = [FailedTrial(number, {}, "TypeError", error, 1, None) for number, error in enumerate(errors)]

    assert [one.numbers for one in by_cause(failed)] == ["0-1"]


def test_many_numbers_are_counted() -> None:
    assert ranges(list(range(0, 40, 2)), limit=3) == "0, 2, 4 and 17 more"
