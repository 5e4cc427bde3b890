"""The fleet of a folder: started by the first fit, shared by its scripts, gone with its owner."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gridfleet import GridSearchCV, open_search
from gridfleet.scheduler.fleet.connection import connect
from gridfleet.scheduler.fleet.local import client
from gridfleet.scheduler.fleet.local.folder import Folder
from gridfleet.scheduler.submission.this_process import warn_of_other_variables
from gridfleet.storage.settings import Settings
from tests.end_to_end.conftest import REPOSITORY, start_script
from tests.end_to_end.models import Touching
from tests.warm_scripts import COMMAND, warm_scripts

#: A fleet that starts on a machine with eight times as much to do as it can.
PATIENCE_S = 180
#: A user's script: a model in the script, one import from gridfleet.
SCRIPT = """
    import numpy
    from sklearn.base import BaseEstimator
    from gridfleet import GridSearchCV

    def create_model(units):
        return units * 2

    class Model(BaseEstimator):
        def __init__(self, build=create_model, units=1):
            self.build = build
            self.units = units
        def fit(self, X, y):
            import os, subprocess
            if "GRIDFLEET_NODE" in os.environ:  # not at the refit
                subprocess.Popen(["sleep", "600"])  # nothing may be left of it
            self.built_ = self.build(self.units)
            return self
        def score(self, X, y):
            return self.built_ / 10

    grid = GridSearchCV(Model(), {"units": [1, 3, 2]}, n_jobs=2, cv=2)
    result = grid.fit(numpy.zeros((10, 2)), numpy.arange(10) % 2)
    print("best score: %f, best params: %s" % (result.best_score_, result.best_params_))
"""

WAITING = """
    import sys
    import numpy
    from gridfleet import GridSearchCV
    import models

    model = models.Touching({folder!r}, then="wait")
    grid = GridSearchCV(model, {{"value": [1, 2]}}, n_jobs=2, cv=2, refit=False, name="waiting")
    print(grid.fit(numpy.zeros((12, 2)), numpy.arange(12) % 2).cv_results_["mean_test_score"])
"""


def processes_of(home: Path) -> list[psutil.Process]:
    """Find the processes that a folder's fleet consists of, by what they were started with."""
    found = []
    for process in psutil.process_iter():
        try:
            shown = " ".join(process.cmdline()) + process.environ().get("GRIDFLEET_HOME", "")
        except psutil.Error:
            continue
        if str(home) in shown and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)  # a look at all processes takes its time


@pytest.fixture
def waiting_script(embedded_home: Path) -> str:
    """Lay a script and the module of its model into the folder; the model waits for a file named go."""
    (embedded_home / "models.py").write_text((Path(__file__).parent / "models.py").read_text())
    return WAITING.format(folder=str(embedded_home))


def on_one_core() -> None:
    """Leave a child one core, where n_jobs=-1 alone would be one worker."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_a_script_with_one_changed_import_runs_on_a_fleet_of_its_own_as_the_demo_does(embedded_home: Path) -> None:
    """The demo has two workers on any machine, and the status of its script."""
    lines = (REPOSITORY / "Makefile").read_text().splitlines()
    (command,) = [line.split() for line in lines if "examples/pima_grid_search.py" in line]
    code = textwrap.dedent(SCRIPT).replace("n_jobs=2", "n_jobs=-1") + (
        "import json, pathlib\n"
        "print(json.loads(pathlib.Path('.gridfleet/fleet.json').read_text())['n_workers'], 'workers')\n"
        "raise SystemExit(7)\n"
    )
    (embedded_home / "script.py").write_text(code)

    demo = [sys.executable, *(REPOSITORY / part for part in command[1:-1]), "script.py"]
    done = subprocess.run(demo, capture_output=True, text=True, preexec_fn=on_one_core)

    assert done.returncode == 7, done.stderr
    assert "best score: 0.600000, best params: {'units': 3}" in done.stdout
    assert "3/3 scored" in done.stderr
    assert "2 workers" in done.stdout
    home = embedded_home / ".gridfleet"
    assert processes_of(home) == []
    assert open_search("search-1").best_params_ == {"units": 3}
    # what is in it is for its user only
    assert home.stat().st_mode & 0o077 == 0
    assert (home / "secret.key").stat().st_mode & 0o077 == 0


def test_nothing_is_left_of_a_fleet_whose_owner_was_killed(embedded_home: Path, waiting_script: str) -> None:
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, waiting_script) as script:
        wait_until(lambda: list(embedded_home.glob("began-*")), "no trial began")
        assert processes_of(home)
        script.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(home), "processes are left of the killed script's fleet")

    assert open_search("waiting").progress().completed == 0  # it goes on as what is told of below, and in faults


def test_nothing_is_left_when_the_supervisor_itself_is_killed(embedded_home: Path, waiting_script: str) -> None:
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, waiting_script) as script:
        wait_until(lambda: list(embedded_home.glob("began-*")), "no trial began")
        supervisor = next(p for p in processes_of(home) if "gridfleet.scheduler.fleet.local.supervisor" in p.cmdline())
        family = supervisor.children(recursive=True)
        supervisor.kill()
        wait_until(
            lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family),
            "a process outlived the supervisor",
        )
        (embedded_home / "go").touch()  # the script starts another fleet and ends well
        output, errors = script.communicate(timeout=120)
    assert "[1. 2.]" in output, errors


def test_two_scripts_of_a_folder_share_one_fleet_which_goes_on_with_another_number_of_processes(
    embedded_home: Path, waiting_script: str
) -> None:
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, waiting_script, OMP_DYNAMIC="false") as first:
        wait_until(lambda: len(list(embedded_home.glob("began-*"))) == 2, "the trials did not begin")
        with pytest.warns(UserWarning, match="OMP_DYNAMIC is not set here and 'false' there"):
            warn_of_other_variables(connect())

        changed = warm_scripts().run(COMMAND, "up", "--workers", "1", cwd=embedded_home)

        assert changed.returncode == 0
        assert changed.stderr.startswith(f"gridfleet: the fleet in {home} goes on with 1 worker process; what runs ")
        assert json.loads((home / "fleet.json").read_text())["n_workers"] == 1

        # on the new process, while the two before it finish what they run
        GridSearchCV(Touching(str(embedded_home)), {"value": [5]}, cv=2, refit=False, verbose=0).fit(
            [[0.0]] * 12, [0, 1] * 6
        )

        supervisors = [p for p in processes_of(home) if "gridfleet.scheduler.fleet.local.supervisor" in p.cmdline()]
        assert len(supervisors) == 1
        (embedded_home / "go").touch()
        output, errors = first.communicate(timeout=120)
    assert "[1. 2.]" in output, errors
    # one for each split, and two of the second search, as nothing was done twice
    assert len(list(embedded_home.glob("began-[12]-*"))) == 4


def test_ctrl_c_stops_the_fleet_and_says_how_to_go_on(embedded_home: Path, waiting_script: str) -> None:
    with start_script(embedded_home, waiting_script) as script:
        wait_until(lambda: list(embedded_home.glob("began-*")), "no trial began")
        script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=120)

    assert script.returncode == -signal.SIGINT
    assert errors.endswith(
        "KeyboardInterrupt: stopped waiting; waiting stops with this process (0/2)\n"
        "  to go on in a script:  name='waiting', load_if_exists=True\n"
        "  to go on without one:  gridfleet up\n"
    )
    assert processes_of(embedded_home / ".gridfleet") == []
    assert open_search("waiting").progress().queued == 2


def test_a_script_that_goes_home_is_told_that_its_search_stops(
    embedded_home: Path, waiting_script: str, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    submits = waiting_script.replace("import GridSearchCV", "import GridSearchCV, submit")
    submits = submits.replace("print(grid.fit(", "submit(*(grid, ").replace('.cv_results_["mean_test_score"]', "")

    done = run_script(embedded_home, submits)

    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("gridfleet: waiting stops with this process (0/2)\n")
    assert done.stderr.endswith("gridfleet up\n")
    (embedded_home / "go").touch()
    waits = run_script(embedded_home, "from gridfleet import open_search\nopen_search('waiting').wait(60)\n")
    assert (waits.returncode, waits.stderr.strip()) == (0, "")


def test_fit_shows_a_bar_on_a_terminal_and_nothing_with_verbose_0(embedded_home: Path) -> None:
    (embedded_home / "models.py").write_text((Path(__file__).parent / "models.py").read_text())
    code = f"""
import models
from gridfleet import GridSearchCV
for verbose in (0, 1):
    print("verbose", verbose, flush=True)
    options = dict(cv=2, refit=False, verbose=verbose, n_jobs=1, name=f"verbose{{verbose}}")
    model = models.Touching({str(embedded_home)!r})
    GridSearchCV(model, {{"value": [1, 2]}}, **options).fit([[0.0]] * 12, [0, 1] * 6)
"""
    (embedded_home / "script.py").write_text(code)
    ours, theirs = pty.openpty()
    with warm_scripts().start(embedded_home / "script.py", terminal=theirs, cwd=embedded_home) as script:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += part
        assert script.wait(60) == 0
    os.close(ours)
    silent, _, loud = shown.decode().partition("verbose 1")
    assert silent.split() == ["verbose", "0"]
    assert "2/2" in loud
    assert "verbose1" in loud
    assert "━" in loud
    assert loud.count("gridfleet: page: gridfleet page") == 1


def test_tensorflow_is_imported_once_a_search_needs_it(
    embedded_home: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = """
        import sys, types
        from sklearn.base import BaseEstimator
        from sklearn.model_selection import GridSearchCV
        from gridfleet import submit

        class Looker(BaseEstimator):
            def __init__(self, number=0):
                self.number = number
            def fit(self, X, y):
                import sys
                self.found_ = "tensorflow" in sys.modules
                return self
            def score(self, X, y):
                return float(self.found_)

        def scores():
            search = GridSearchCV(Looker(), {"number": [1, 2]}, n_jobs=1, cv=2, refit=False)
            handle = submit(search, [[0.0], [1.0]] * 6, [0, 1] * 6)
            return handle.wait(60).cv_results_["mean_test_score"].tolist()

        print(scores(), "tensorflow" in sys.modules)
        sys.modules["tensorflow"] = types.ModuleType("tensorflow")  # what the script imports counts, and this is quick
        print(scores())
    """
    done = run_script(embedded_home, code)

    assert done.stdout == "[0.0, 0.0] False\n[1.0, 1.0]\n", done.stderr
    assert "exited" not in (embedded_home / ".gridfleet" / "fleet.log").read_text()


def test_a_fleet_lingers_for_the_next_script_and_is_ended_by_down(
    embedded_home: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    home = embedded_home / ".gridfleet"
    (embedded_home / "models.py").write_text((Path(__file__).parent / "models.py").read_text())
    code = f"""
        from gridfleet import GridSearchCV
        import models

        grid = GridSearchCV(models.Touching({str(embedded_home)!r}), {{"value": [1]}}, n_jobs=1, cv=2, refit=False)
        grid.fit([[0.0]] * 12, [0, 1] * 6)
    """

    first = run_script(embedded_home, code, GRIDFLEET_LINGER_S="600", PYTHONWARNINGS="error::ResourceWarning")
    fleet = json.loads((home / "fleet.json").read_text())
    second = run_script(embedded_home, code)  # a fleet that runs keeps its own time

    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("stays for 600 s after this process; `gridfleet down` ends it") == 1, done.stderr
        assert "ResourceWarning" not in done.stderr
    assert json.loads((home / "fleet.json").read_text()) == fleet

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = warm_scripts().run(COMMAND, *arguments, cwd=embedded_home)
        assert done.returncode == 0, done.stderr
        return done

    (shown,) = [one for one in json.loads(run("ps", "--json").stdout) if one["folder"] == str(home)]
    assert (shown["pid"], shown["n_workers"], shown["searches"]) == (fleet["pid"], 1, [])
    assert run("logs", "-n", "1").stdout.splitlines() == (home / "fleet.log").read_text().splitlines()[-1:]
    assert run("down").stderr == f"gridfleet: the fleet in {home} has stopped; no search waits\n"
    assert str(embedded_home) not in run("ps").stdout
    assert client.stop(Settings(home=home)) is False
    wait_until(lambda: not processes_of(home), "a process is left of the fleet")


def test_a_lingering_fleet_ends_after_the_last_script_that_used_it(embedded_home: Path, waiting_script: str) -> None:
    home = embedded_home / ".gridfleet"
    with start_script(embedded_home, waiting_script, GRIDFLEET_LINGER_S="1") as owner:
        wait_until(lambda: list(embedded_home.glob("began-*")), "no trial began")
        user = Folder(home).use()
        owner.kill()
    with user:
        (embedded_home / "go").touch()  # what was submitted goes on
        wait_until(lambda: open_search("waiting").progress().completed == 2, "the search did not go on")
        fleet = json.loads((home / "fleet.json").read_text())
        assert psutil.pid_exists(fleet["pid"])

    wait_until(lambda: not processes_of(home), "the fleet did not end")
