"""One name: nothing else is installed, and nothing of ours is mistaken for a file of the user's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import psutil
import pytest

import gridfleet
from gridfleet.scheduler.fleet.local.folder import Folder

REPOSITORY = Path(__file__).parents[2]
PUBLIC_NAMES = {
    "DataRef",
    "GridSearchCV",
    "GridfleetError",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "OptunaSearchCV",
    "RandomizedSearchCV",
    "SearchHandle",
    "__version__",
    "open_search",
    "register_joblib_backend",
    "submit",
}
#: Names of our rooms and of our dependencies, which users give to files of their own.
TAKEN_NAMES = ("scheduler", "worker", "storage", "celery", "redis")
ROOMS = TAKEN_NAMES[:3]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as `pip install` does it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY))
    (built,) = folder.glob("gridfleet-*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    # a proxy of the loopback that nobody listens at: nothing is fetched
    subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INDEX": "1"})


def run(*command: str, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_one_name_at_its_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"gridfleet"}
    for expected in (
        "gridfleet/py.typed",
        "gridfleet/storage/migrations/script.py.mako",
        "gridfleet/worker/trial/task.py",
        "gridfleet/scheduler/cli/main.py",
        "gridfleet/scheduler/page/templates/base.html",
        "gridfleet/scheduler/page/static/live.js",
    ):
        assert names.count(expected) == 1


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install it into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def test_what_is_installed_lives_beside_a_package_named_scheduler(site: Path, tmp_path: Path) -> None:
    other = site / "scheduler" / "__init__.py"
    assert not other.parent.exists()
    other.parent.mkdir()
    other.write_text("OTHERS = True\n")
    code = "import scheduler, gridfleet.scheduler; print(scheduler.OTHERS, gridfleet.__file__)"

    try:
        # -S: without the environment that runs the tests, where the checkout is installed
        shown = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    finally:
        shutil.rmtree(other.parent)

    assert shown.split() == ["True", str(site / "gridfleet" / "__init__.py")]


def test_the_installed_command_imports_no_file_of_the_current_folder(site: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    fill(hostile, "celery", "redis", "typer", "pydantic", "sqlalchemy", "pathlib", "typing", "socket")
    # `PYTHONPATH=$PYTHONPATH:/somewhere` makes an empty entry, the current folder, of a variable that was not set
    variables = {"PYTHONPATH": os.pathsep.join(["", ".", str(site)])}

    assert "–     folder" in run(str(site / "bin" / "gridfleet"), "doctor", cwd=hostile, **variables)


def test_the_package_shows_its_public_names_only() -> None:
    exported: dict[str, object] = {}
    exec("from gridfleet import *", exported)  # as a notebook's first line

    assert set(dir(gridfleet)) == PUBLIC_NAMES
    assert exported.keys() - {"__builtins__"} == PUBLIC_NAMES
    with pytest.raises(AttributeError, match="module 'gridfleet' has no attribute 'GridSearch'"):
        _ = gridfleet.GridSearch


def test_importing_the_package_imports_none_of_its_dependencies(tmp_path: Path) -> None:
    code = "import gridfleet, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"

    loaded = set(json.loads(run(sys.executable, "-c", code, cwd=tmp_path)))

    assert "gridfleet" in loaded
    assert not loaded & {"tensorflow", "keras", "sklearn", "scipy", "numpy", "pandas", "sqlalchemy", "celery", "redis"}


@pytest.mark.parametrize("command", [[sys.executable, "-m", "gridfleet"], ["gridfleet"]], ids=["module", "script"])
def test_the_command_prints_its_release(command: list[str], tmp_path: Path) -> None:
    bin_folder = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    assert run(*command, "--version", cwd=tmp_path, PATH=bin_folder) == f"gridfleet {gridfleet.__version__}\n"


SCRIPT = """
    import sys
    from queue_ import scaled            # a module of the user's own, that travels by value
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC
    from sklearn.datasets import load_iris
    from gridfleet import GridSearchCV

    pipeline = make_pipeline(FunctionTransformer(scaled), SVC())
    search = GridSearchCV(pipeline, {"svc__C": [0.1, 1.0]}, cv=2, n_jobs=1, verbose=0)
    print(search.fit(*load_iris(return_X_y=True)).best_params_["svc__C"])
"""


def fill(folder: Path, *names: str) -> None:
    """Put files of these names into a folder, and folders for our rooms' names: whoever imports one fails."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user was imported')\n")
    for name in ROOMS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name}/ of the user was imported')\n")


@pytest.fixture
def hostile_home(embedded_home: Path) -> Path:
    """Return a folder where a script's own module lies; its fleet is stopped at the end."""
    (embedded_home / "queue_.py").write_text("def scaled(X):\n    return X * 2.0\n")
    return embedded_home


def test_files_beside_a_script_and_of_the_current_folder_stand_in_for_nothing(hostile_home: Path) -> None:
    # what only the fleet's processes import, for the script has the current folder in its PYTHONPATH
    fill(hostile_home, "celery", "billiard", "kombu", "scheduler", "worker", "storage")
    scripts = hostile_home / "scripts"
    scripts.mkdir()
    # not redis.py, which would stand in for redis in the script itself, as for any library
    fill(scripts, "scheduler", "worker", "storage", "celery")
    (hostile_home / "queue_.py").rename(scripts / "queue_.py")
    (scripts / "script.py").write_text(textwrap.dedent(SCRIPT))
    path = os.pathsep.join(["", ".", str(REPOSITORY)])

    # its fleet stays, for its processes are looked at too
    variables = {"PYTHONPATH": path, "GRIDFLEET_LINGER_S": "600"}
    assert run(sys.executable, "scripts/script.py", cwd=hostile_home, **variables).strip() in ("0.1", "1.0")
    assert_no_process_finds_modules_in_the_current_folder(hostile_home)
    (hostile_home / "redis.py").write_text("raise RuntimeError('redis.py of the user was imported')\n")
    assert "search-1" in run(sys.executable, "-m", "gridfleet", "list", cwd=hostile_home)


def assert_no_process_finds_modules_in_the_current_folder(home: Path) -> None:
    """Look at the fleet of a script that has ended."""
    running = Folder(home / ".gridfleet").running()
    assert running is not None
    supervisor = psutil.Process(running["pid"])
    processes = [supervisor, *supervisor.children(recursive=True)]
    family = [(process.cmdline(), process.environ()) for process in processes]
    # the supervisor, the worker's main process and a child of it; the broker is no Python
    interpreters = [(command, variables) for command, variables in family if {"-c", "-m"} & set(command)]

    assert len(interpreters) >= 3
    for command, variables in interpreters:
        assert "-P" in command or variables.get("PYTHONSAFEPATH") == "1", command
    folders = {Path(process.cwd()) for process in processes} - {Path("/")}  # where what passes trials' output on runs
    assert folders == {home / ".gridfleet" / "work", home / ".gridfleet" / "broker"}
