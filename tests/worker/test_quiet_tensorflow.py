"""TensorFlow is imported without its C++ library's lines, and nothing else is silenced."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What a program does before it imports TensorFlow, as a worker's child does.
BEFORE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from gridfleet.worker.guards.quiet_tensorflow import quiet_tensorflow
quiet_tensorflow()
quiet_tensorflow()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEFORE + code], capture_output=True, text=True)


#: Stands for TensorFlow, whose C++ writes as much past sys.stderr: importing the real one takes 4 s of the processor.
LOUD = """
import pathlib, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "tensorflow.py").write_text("import os; os.write(2, b'WARNING: All log messages before'); answer = 42")
sys.path.insert(0, str(folder))
"""


def test_the_first_import_is_silent_and_what_follows_is_not() -> None:
    done = run(
        f"{LOUD}\nimport tensorflow\nos.write(2, b'still heard')\n"
        "print(tensorflow.answer, [f for f in sys.meta_path if 'quiet' in type(f).__module__])"
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "42 []\n", "still heard")


@pytest.mark.complete  # the real one is silent in test_submit_of_a_keras_model_prints_no_lines_of_tensorflow
def test_the_real_one_is_silent_and_what_follows_is_not() -> None:
    done = run(
        "import keras, tensorflow\n"
        "os.write(2, b'still heard')\n"
        "print(tensorflow.constant(1).numpy(), [f for f in sys.meta_path if 'quiet' in type(f).__module__])"
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "1 []\n", "still heard")


def test_nothing_is_imported_and_nothing_is_silent_before() -> None:
    done = run("import json; os.write(2, b'heard'); print('tensorflow' in sys.modules)")

    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "heard")


def test_an_import_that_fails_says_why() -> None:
    done = run(
        "import tempfile, pathlib\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "(folder / 'tensorflow.py').write_text('raise ImportError(\"no such library\")')\n"
        "sys.path.insert(0, str(folder))\n"
        "import tensorflow"
    )

    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: no such library\n")
