"""The README's first own search and the commands that read it, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()

#: What the README's script leaves to its reader.
DATA = "import numpy\nX, y = numpy.random.default_rng(0).random((60, 8)), numpy.arange(60) % 2\n"


def test_the_first_own_search_and_its_commands_work(embedded_home: Path, request: pytest.FixtureRequest) -> None:
    script = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def create_model" in block
    )
    # a hundred epochs teach this test nothing
    (embedded_home / "script.py").write_text(DATA + script.replace("epochs=100", "epochs=1"))

    # a script is run more than once; Keras is trained twice in a complete run only
    for name in ("first", "first-2") if request.config.getoption("--complete") else ("first",):
        done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300)

        assert done.returncode == 0, done.stderr[-3000:]
        assert "model__optimizer" in done.stdout
        assert f"{name}: " in done.stderr
    commands = [line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("gridfleet ")]
    asked = [command for command in commands if command.split()[1] in ("list", "report", "best", "sql", "doctor")]
    assert len(asked) == 5
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in asked:
        answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env={**os.environ, **path})
        assert answer.returncode == 0, f"{command}: {answer.stderr}"
        assert "first" in answer.stdout or command.split()[1] in ("sql", "doctor")
