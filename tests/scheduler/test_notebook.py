"""What a notebook shows: one output that is updated, and of an error of ours its sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import start_new_kernel

from gridfleet.scheduler.reports import progress as progress_display
from gridfleet.scheduler.reports.progress import display
from tests.scheduler.test_progress import HALF

IN_KERNEL = """
from dataclasses import replace
from gridfleet.scheduler.reports.progress import display
from gridfleet.scheduler.results.frames import without_our_frames
from gridfleet.storage.errors import NameTakenError
from tests.scheduler.test_progress import HALF

with display("pima", verbose=1) as shown:
    for done in (1, 2, 2, 3):
        shown.show(replace(HALF, completed=done))

@without_our_frames
def submit():
    raise NameTakenError("name 'pima' is taken")

submit()
"""
#: A kernel does not end at Ctrl-C, which decides what is said.
CTRL_C = """
from gridfleet.scheduler.results.going_on import _interrupt, _is_interactive

raise _interrupt(f"stopped waiting; {_is_interactive()}")
"""


@pytest.fixture
def shell() -> Iterator[Any]:
    """Start IPython in this process, with what it publishes kept."""
    with patch.multiple(sys, displayhook=sys.displayhook, excepthook=sys.excepthook), patch.dict(sys.modules):
        yield InteractiveShell.instance(display_pub_class=CapturingDisplayPublisher)
        InteractiveShell.clear_instance()
        for name in ("ps1", "ps2", "ps3"):
            vars(sys).pop(name, None)


def test_a_notebook_has_one_output_that_is_updated(shell: Any) -> None:
    with display("<b>", verbose=1) as on_terminal:
        assert isinstance(on_terminal, progress_display._Lines)
    shell.kernel = object()
    with display("<b>", verbose=1) as shown:
        for done in (1, 2, 2, 3):
            shown.show(replace(HALF, completed=done))

    outputs = shell.display_pub.outputs
    assert [output.get("update", False) for output in outputs] == [False, True, True]
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert outputs[-1]["data"]["text/plain"] == "<b>: 3/60 scored, 2 running, 1 failed, best 0.7999"
    assert "&lt;b&gt;: 3/60 scored" in outputs[-1]["data"]["text/html"]


def test_ipython_shows_an_error_of_ours_in_a_line(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run_cell(IN_KERNEL.partition("\n\n")[0] + IN_KERNEL[IN_KERNEL.index("\n@without") :])

    assert capsys.readouterr().out == "NameTakenError: name 'pima' is taken\n"


def test_a_kernel_updates_one_output_and_shows_what_we_raise_in_a_line() -> None:
    messages: list[dict[str, Any]] = []

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    manager, client = start_new_kernel(kernel_name="python3", env=environment)
    try:
        for cell in (IN_KERNEL, CTRL_C):
            client.execute_interactive(cell, output_hook=messages.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

    shown = [message for message in messages if message["msg_type"] not in ("status", "execute_input")]
    assert [message["msg_type"] for message in shown] == [
        "display_data",
        "update_display_data",
        "update_display_data",
        "error",
        "error",
    ]
    assert [message["content"]["traceback"] for message in shown[3:]] == [
        ["NameTakenError: name 'pima' is taken"],
        ["stopped waiting; True"],
    ]
