"""Where gridfleet can't run, importing it says so in one sentence."""

from __future__ import annotations

import subprocess
import sys


def test_on_windows_the_import_says_where_to_run_it() -> None:
    script = "import sys; sys.platform = 'win32'; import gridfleet"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 1
    sentence = "ImportError: gridfleet runs on Linux and macOS; on Windows, use it in WSL 2 or in a Linux container"
    assert done.stderr.splitlines()[-1] == sentence
