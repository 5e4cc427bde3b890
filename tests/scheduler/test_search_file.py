"""The search file: what it describes, and one sentence with file, line and key for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from gridfleet import DataRef
from gridfleet.scheduler.search_file.description import parse
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.search_file.search import FileSearch, load_search
from gridfleet.storage.errors import InvalidSearchError

EXAMPLE = Path(__file__).parents[2] / "examples" / "pima.yaml"
SVC = {
    "name": "flowers",
    "model": "sklearn.svm:SVC",
    "data": {"file": "flowers.csv", "target": "kind"},
    "space": {"C": [1, 10], "kernel": ["rbf", "linear"]},
    "cv": 3,
}
MODELS = """
from keras import Input, Sequential
from keras.layers import Dense

def create_model(units=4, optimizer="adam"):
    model = Sequential([Input(shape=(2,)), Dense(units), Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", optimizer=optimizer)
    return model
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a data file and a module of model functions, forgotten after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    frame = pd.DataFrame({"width": [1.0, 2, 3, 4, 5, 6], "height": [2, 1, 4, 3, 6, 5], "kind": list("abcabc")})
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    frame.assign(kind=[0, 1, 0, 1, 0, 1]).to_csv(tmp_path / "no_header.csv", index=False, header=False)
    frame.to_parquet(tmp_path / "flowers.parquet")
    np.savez(tmp_path / "flowers.npz", X=frame[["width", "height"]].to_numpy(), y=np.array([0, 1, 0, 1, 0, 1]))
    (tmp_path / "models.py").write_text(MODELS)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if _lies_in(module, tmp_path)]:
        del sys.modules[name]


def _lies_in(module, folder: Path) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))


def _write(folder: Path, **changes) -> Path:
    described = {key: value for key, value in {**SVC, **changes}.items() if value is not None}
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(described, sort_keys=False))
    return file


def _load(file: Path) -> FileSearch:
    return load_search(parse(read_document(file)), file)


def _refused(file: Path) -> str:
    with pytest.raises(InvalidSearchError) as error:
        _load(file)
    sentence = str(error.value)
    assert sentence.startswith(str(file))
    assert "\n" not in sentence
    return sentence.removeprefix(str(file))


def test_the_example_is_the_search_of_the_script():
    loaded = _load(EXAMPLE)

    assert parse(read_document(EXAMPLE)).name == "pima"
    assert loaded.X.shape == (768, 8)
    assert loaded.X.dtype == np.float64
    assert sorted(set(loaded.y)) == [0, 1]
    assert loaded.search.param_grid == {"model__optimizer": ["adam", "rmsprop"]}
    assert loaded.search.cv == 3
    settings = loaded.search.estimator.get_params()
    assert (settings["epochs"], settings["batch_size"], settings["random_state"], settings["verbose"]) == (
        100,
        10,
        42,
        0,
    )
    assert settings["model"].__name__ == "create_pima_model"


def test_an_estimator_with_a_splitter_and_several_scorers(folder):
    file = _write(
        folder,
        fit={"gamma": 0.5},
        random_state=7,
        cv={"splitter": "StratifiedKFold", "n_splits": 2, "shuffle": True, "random_state": 0},
        scoring=["accuracy", "f1_macro"],
        refit="f1_macro",
    )

    search = _load(file).search

    assert type(search).__name__ == "GridSearchCV"
    assert repr(search.estimator) == "SVC(gamma=0.5, random_state=7)"
    assert repr(search.cv) == "StratifiedKFold(n_splits=2, random_state=0, shuffle=True)"
    assert (search.scoring, search.refit) == (["accuracy", "f1_macro"], "f1_macro")


def test_a_random_search_draws_from_distributions(folder):
    file = folder / "random.yaml"
    file.write_text(
        "model: sklearn.svm.SVC\ndata: {file: flowers.csv, target: kind}\nstrategy: random\nn_iter: 4\n"
        "random_state: 3\nspace: {C: {loguniform: [1e-4, 1E3]}, kernel: [rbf, no]}\n"
    )

    loaded = _load(file)

    assert loaded.search.n_iter == 4
    assert loaded.search.random_state == 3
    space = loaded.search.param_distributions
    assert space["C"].support() == (1e-4, 1e3)
    assert space["kernel"] == ["rbf", "no"]


def test_a_search_that_learns(folder):
    file = folder / "learns.yaml"
    file.write_text(
        "model: sklearn.svm.SVC\ndata: {file: flowers.csv, target: kind}\nstrategy: optuna\nn_trials: 30\n"
        "lookahead: 4\nrandom_state: 3\nsampler: {name: tpe, n_startup_trials: 5}\n"
        "pruner: {name: asha, reduction_factor: 4}\nmonitor: score\nmin_resource: 2\n"
        "space: {C: {loguniform: [1e-4, 1E3]}, kernel: [rbf]}\n"
    )

    proposals = _load(file).search.proposals()

    assert (proposals.n_trials, proposals.lookahead, proposals.seed, proposals.asks_in_order) == (30, 4, 3, True)
    assert proposals.sampler.to_json() == '{"name":"tpe","n_startup_trials":5}'
    assert list(proposals.given.space.branches[0]) == ["C", "kernel"]
    assert proposals.pruner.to_json() == '{"name":"asha","min_resource":2,"reduction_factor":4}'
    assert proposals.monitor == "score"


def test_halving_searches(folder):
    file = folder / "halves.yaml"
    start = "model: sklearn.ensemble.RandomForestClassifier\ndata: {file: flowers.csv, target: kind}\nrandom_state: 3\n"
    file.write_text(
        f"{start}strategy: halving-random\nn_candidates: 8\nresource: n_estimators\nmin_resources: 2\n"
        "max_resources: 16\nfactor: 2\nspace: {max_depth: {randint: [2, 9]}}\n"
    )

    search = _load(file).search

    assert type(search).__name__ == "HalvingRandomSearchCV"
    assert (search.n_candidates, search.resource, search.factor, search.random_state) == (8, "n_estimators", 2, 3)
    assert (search.min_resources, search.max_resources, search.aggressive_elimination) == (2, 16, False)
    file.write_text(f"{start}strategy: halving-grid\nspace: {{max_depth: [2, 3, 4]}}\nsearch_timeout: 9\n")
    search = _load(file).search
    assert type(search).__name__ == "HalvingGridSearchCV"
    assert (search.resource, search.min_resources, search.search_timeout) == ("n_samples", "exhaust", 9)


def test_several_grids(folder):
    spaces = [{"kernel": ["linear"]}, {"kernel": ["rbf"], "gamma": [0.1, 1]}]

    assert _load(_write(folder, space=spaces)).search.param_grid == spaces


@pytest.mark.parametrize(
    "data",
    [
        {"file": "flowers.csv", "target": "kind"},
        {"file": "flowers.csv", "target": -1},
        {"file": "flowers.csv", "target": 2, "header": True},
        {"file": "flowers.parquet", "target": "kind"},
        {"file": "no_header.csv", "target": -1, "header": False},
        {"file": "flowers.npz"},
        {"file": "flowers.npz", "X": "X", "y": "y"},
    ],
    ids=str,
)
def test_data_files(folder, data):
    loaded = _load(_write(folder, data=data))

    assert loaded.X.tolist() == [[1, 2], [2, 1], [3, 4], [4, 3], [5, 6], [6, 5]]
    assert len(loaded.y) == 6
    assert loaded.y.dtype.kind in "iU"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nam": "x"}, "line 14: `nam` is no key of a search file; did you mean 'name'?"),
        (
            {"data": {"file": "flowers.csv", "taget": "kind"}},
            "line 5: `data.taget` is no key of a search file; did you",
        ),
        (
            {"model": None, "modl": "sklearn.svm:SVC"},
            "line 13: `modl` is no key of a search file; did you mean 'model'?",
        ),
        ({"data": {"fil": "flowers.csv"}}, "line 4: `data.fil` is no key of a search file; did you mean 'file'?"),
        ({"data": None}, "`data` is missing; it is: The data file and its target, as in {file: data.csv"),
        ({"model": None}, "`model` is missing; it is: models.py:function"),
        ({"data": {"target": "kind"}}, "line 3: `data.file` is missing"),
        ({"name": 3}, "line 1: `name` is 3; input should be a valid string"),
        ({"strategy": "gird"}, "`strategy` is 'gird'; input should be 'grid', 'random', 'optuna', 'halving-grid' or"),
        ({"wrapper": "keras"}, "`wrapper` is 'keras'; input should be 'classifier' or 'regressor'"),
        ({"random_state": "x"}, "`random_state` is 'x'"),
        ({"space": {}}, "`space` is empty"),
        ({"space": []}, "`space` is []"),
        ({"space": 3}, "`space` is 3"),
        ({"space": [{"C": [1]}, {}]}, "`space[1]` is empty"),
        ({"space": {"C": []}}, "line 7: `space.C` has no values to try"),
        ({"space": {"C": 3}}, "`space.C` is 3; write a list of values, as in [3]"),
        ({"space": [{"C": [1]}, {"kernel": "rbf"}]}, "`space[1].kernel` is 'rbf'; write a list"),
        ({"space": {"C": {"uniform": [0, 1]}}}, "line 7: `space.C` is a distribution; a grid needs lists"),
        ({"n_iter": 3}, "`n_iter` is for `strategy: random`"),
        ({"strategy": "random", "n_iter": 0}, "`n_iter` is 0"),
        ({"strategy": "optuna", "n_trials": 0}, "`n_trials` is 0"),
        ({"strategy": "optuna", "n_iter": 3}, "`n_iter` is for `strategy: random`; write `n_trials`"),
        ({"strategy": "optuna", "reuse": True}, "`reuse` is not for `strategy: optuna`"),
        ({"sampler": "tpe"}, "`sampler` is for `strategy: optuna`"),
        ({"factor": 2}, "`factor` is for `strategy: halving-grid` or `halving-random`"),
        ({"strategy": "halving-grid", "factor": 1}, "`factor`"),
        ({"strategy": "halving-grid", "n_candidates": 4}, "`n_candidates` is for `strategy: halving-random`"),
        ({"strategy": "halving-random", "n_iter": 4}, "`n_iter` is for `strategy: random`; write `n_candidates`"),
        ({"strategy": "halving-grid", "reuse": True}, "`reuse` is not for `strategy: halving-grid`"),
        ({"strategy": "halving-grid", "scoring": ["accuracy", "f1"]}, "a halving search goes by one score"),
        ({"cv": 1}, "`cv` is 1; it needs at least 2 splits"),
        ({"cv": "three"}, "`cv` is 'three'; write a number of splits"),
        ({"cv": {"splitter": "StratifedKFold"}}, "did you mean 'StratifiedKFold'?"),
        ({"cv": {"splitter": "PredefinedSplit"}}, "`cv` names the splitter 'PredefinedSplit'"),
        ({"cv": {"splitter": "KFold", "n_split": 2}}, "not a setting of KFold; did you mean 'n_splits'?"),
        ({"cv": {"splitter": "KFold", "n_splits": 1}}, "`cv` is refused by KFold"),
        ({"scoring": "acuracy"}, "no scorer of scikit-learn; did you mean 'accuracy'?"),
        ({"scoring": ["accuracy", "f2"]}, "`scoring` is 'f2'"),
        ({"scoring": []}, "`scoring` is an empty list"),
        ({"scoring": ["accuracy"], "refit": "f1"}, "`refit` is 'f1', which `scoring` does not list"),
        ({"space": {"kernal": ["rbf"]}}, "`space.kernal` is not a parameter of SVC; did you mean 'kernel'?"),
        ({"fit": {"gama": 1}}, "`fit.gama` is not a parameter of SVC; did you mean 'gamma'?"),
        ({"model": "sklearn.neighbors:KNeighborsClassifier", "random_state": 1}, "`random_state` is not a parameter"),
        ({"model": "SVC"}, "`model` is 'SVC'; write models.py:function"),
        ({"model": "sklearn.svm:SVX"}, "sklearn.svm has no function or class 'SVX'; did you mean"),
        ({"model": "sklearn.swm:SVC"}, "importing sklearn.swm raises ModuleNotFoundError"),
        ({"model": "model.py:create_model"}, "`model`: there is no file"),
        ({"model": "sklearn.svm:SVC", "wrapper": "classifier"}, "`wrapper` is for functions"),
        ({"model": "models.py:create_model"}, "`wrapper` is missing"),
        ({"model": "sklearn.svm:SVR"}, "`data.target`: SVR needs numbers, y has 'a'"),
    ],
    ids=str,
)
def test_mistakes_name_file_key_and_remedy(folder, changes, sentence):
    assert sentence in _refused(_write(folder, **changes))


@pytest.mark.parametrize(
    ("key", "names", "sentence"),
    [
        (
            "space",
            {"optimizer": ["adam"]},
            "scikeras keeps 'optimizer' to itself and calls models.py:create_model without",
        ),
        ("space", {"units": [2]}, "(an argument of models.py:create_model is written model__units)"),
        ("space", {"model__unit": [2]}, "models.py:create_model has no argument 'unit'; did you mean 'units'?"),
        (
            "space",
            {"units": [2]},
            "`space.units` is no parameter of the classifier wrapper; did you mean 'model__units'?",
        ),
        ("space", {"epoch": [2]}, "did you mean 'epochs'?"),
        (
            "fit",
            {"batchsize": 2},
            "`fit.batchsize` is no parameter of the classifier wrapper; did you mean 'batch_size'?",
        ),
    ],
    ids=str,
)
def test_a_hyperparameter_that_would_not_reach_the_model_is_refused(folder, key, names, sentence):
    changes = {"space": {"epochs": [1]}, key: names}
    data = {"file": "flowers.npz"}

    assert sentence in _refused(
        _write(folder, model="models.py:create_model", wrapper="classifier", data=data, **changes)
    )


@pytest.mark.parametrize(
    "names", [{"model__units": [2]}, {"epochs": [1]}, {"optimizer__learning_rate": [0.1]}], ids=str
)
def test_hyperparameters_of_wrapper_model_and_optimizer_are_taken(folder, names):
    data = {"file": "flowers.npz"}
    file = _write(
        folder, model="models.py:create_model", wrapper="classifier", data=data, fit={"units": 3}, space=names
    )

    assert _load(file).search.param_grid == names


@pytest.mark.parametrize(
    ("content", "data", "sentence"),
    [
        (None, {"file": "x.csv", "target": 0}, "`data.file`: there is no file"),
        ("", {"file": "x.csv", "target": 0}, "is empty"),
        ("a,b\n", {"file": "x.csv", "target": 0}, "has no rows"),
        ("a,b\n1,2\n", {"file": "x.csv"}, "`data.target` is missing"),
        ("a,b\n1,2\n", {"file": "x.csv", "target": "c"}, "has no column 'c'; there are a, b"),
        ("age,kind\n1,2\n", {"file": "x.csv", "target": "knd"}, "did you mean 'kind'?"),
        ("a,b\n1,2\n", {"file": "x.csv", "target": 2}, "has 2 columns, so 2 is no index of one"),
        ("a,b\n1,2\n3,4,5\n", {"file": "x.csv", "target": "b"}, "no CSV file that can be read"),
        ("a,b\n1,2,3\n3,4,5\n", {"file": "x.csv", "target": "b"}, "no CSV file that can be read"),
        ("a,b\n1,2\nx,4\n", {"file": "x.csv", "target": "b"}, "column 'a' of"),
        ("a,b\n1,2\nx,4\n", {"file": "x.csv", "target": "b"}, "is not numeric, row 2 has 'x'"),
        ("a,b\n1,\n3,4\n", {"file": "x.csv", "target": "b"}, "has 1 missing values, the first in row 1"),
        ("a;b\n1;2\n", {"file": "x.csv", "target": 0}, "the columns must be separated by commas"),
        ("1,2\n3,4\n", {"file": "x.csv", "target": 0}, "write `header: false`"),
        ("a,b\n3,4\n", {"file": "x.csv", "target": 1, "header": False}, "the first line seems to name the columns"),
        ("a,b\n1,2\n", {"file": "x.csv", "target": "b", "X": "a"}, "`data.X` has no meaning for x.csv"),
        ("nonsense", {"file": "x.parquet", "target": "b"}, "no Parquet file that can be read"),
        ("nonsense", {"file": "x.npz"}, "x.npz is no .npz file; write it with numpy.savez"),
        ("nonsense", {"file": "x.txt"}, "none of .csv, .parquet and .npz"),
        ("nonsense", {"file": "x.npz", "target": 1}, "`data.target` has no meaning for x.npz"),
    ],
    ids=str,
)
def test_a_missing_or_malformed_data_file_is_one_sentence(folder, content, data, sentence):
    if content is not None:
        (folder / data["file"]).write_text(content)

    assert sentence in _refused(_write(folder, data=data))


@pytest.mark.parametrize(
    ("arrays", "data", "sentence"),
    [
        ({"X": np.ones((3, 2)), "y": np.ones(2)}, {}, "has 3 rows in X and 2 in y"),
        ({"X": np.ones((3, 2)), "z": np.ones(3)}, {}, "`data.y`: "),
        ({"X": np.ones((3, 2)), "z": np.ones(3)}, {}, "has no array 'y'; there are X, z"),
        ({"X": np.array([{}, {}]), "y": np.ones(2)}, {}, "holds Python objects, which could run code"),
        ({"X": np.array(["a", "b"]), "y": np.ones(2)}, {}, "not numbers"),
        ({"X": np.ones((2, 2)), "y": np.array([1, np.nan])}, {}, "has 1 NaN values in y"),
        ({"X": np.ones((2, 2)), "y": np.array(1)}, {}, "is a single value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_do_not_fit_are_refused(folder, arrays, data, sentence):
    np.savez(folder / "bad.npz", **arrays)

    assert sentence in _refused(_write(folder, data={"file": "bad.npz", **data}))


@pytest.mark.parametrize("start", [100, 1000, -300])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_file_is_one_sentence(folder, save, start):
    save(folder / "bad.npz", X=np.arange(2000.0).reshape(-1, 2), y=np.arange(1000))
    content = (folder / "bad.npz").read_bytes()
    (folder / "bad.npz").write_bytes(content[:start] + b"\0" * 100 + content[start + 100 :])

    sentence = _refused(_write(folder, data={"file": "bad.npz"}))

    assert "bad.npz is no .npz file that can be read: " in sentence
    assert "pickle" not in sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no keys"),
        ("- 1", "has no keys"),
        ("name: [", "is not YAML: line 1, column"),
        ("model: a\nname: x\nname: y", "line 3: `name` is there twice, first in line 2"),
        ("model: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_is_no_search_file_is_refused(folder, content, sentence):
    file = folder / "search.yaml"
    file.write_text(content)

    assert sentence in _refused(file)


def test_a_search_file_that_is_not_there(tmp_path):
    assert "can't be read: No such file or directory" in _refused(tmp_path / "search.yaml")


def test_a_model_file_that_raises_is_named(folder):
    (folder / "models.py").write_text("import no_such_module")

    assert "models.py raises ModuleNotFoundError" in _refused(_write(folder, model="models.py:create_model"))


def test_files_beside_a_search_file_stand_in_for_no_package(folder):
    for name in ("scipy", "joblib", "numpy", "colorsys"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py beside the search file was imported')")
    code = f"""
import sys
from pathlib import Path
from gridfleet import DataRef
from gridfleet.scheduler.search_file.description import parse
from gridfleet.scheduler.search_file.document import read_document
from gridfleet.scheduler.search_file.search import load_search
file = Path({str(folder / "search.yaml")!r})
load_search(parse(read_document(file)), file)
print({str(folder)!r} in sys.path, sys.path[-1] == {str(folder)!r})
"""
    _write(folder)
    assert _run(code) == "False False"

    (folder / "models.py").write_text("import colorsys\nimport beside\nfrom sklearn.svm import SVC as Model\n")
    (folder / "beside.py").touch()
    _write(folder, model="models.py:Model")
    assert _run(code) == "True True"


def test_a_model_file_named_as_a_package_does_not_take_its_place(folder):
    (folder / "colorsys.py").write_text("from sklearn.svm import SVC as Model\n")
    assert "colorsys" not in sys.modules or not _lies_in(sys.modules["colorsys"], folder)

    _load(_write(folder, model="colorsys.py:Model"))

    import colorsys

    assert not _lies_in(colorsys, folder)


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _references(folder: Path, **changes) -> dict:
    np.save(folder / "X.npy", np.arange(12.0).reshape(6, 2))
    np.savez(folder / "more.npz", groups=np.array([0, 0, 1, 1, 2, 2]), w=np.ones(6))
    return {"X": {"path": "X.npy"}, "y": {"path": "flowers.csv", "columns": "kind"}, **changes}


def test_data_by_reference_are_named_as_in_python(folder):
    data = _references(
        folder,
        groups={"path": "more.npz", "key": "groups"},
        sample_weight={"path": "s3://bucket/w.npy", "sha256": "a" * 64},
    )
    loaded = _load(_write(folder, data=data, cv={"splitter": "GroupKFold", "n_splits": 3}))

    assert DataRef(folder / "X.npy") == loaded.X
    assert loaded.y == DataRef(folder / "flowers.csv", columns="kind")
    assert loaded.params == {
        "groups": DataRef(folder / "more.npz", key="groups"),
        "sample_weight": DataRef("s3://bucket/w.npy", sha256="a" * 64),
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"y": None}, "`data.file` is missing"),
        ({"y": "y"}, "`data.file` is missing"),
        ({"target": "kind"}, "`data.target` has no meaning beside `data.X` by reference"),
        ({"file": "flowers.csv"}, "`data.file` has no meaning beside `data.X`"),
        ({"X": {"path": "X.npy", "sha": "a"}}, "`data.X.sha` is no key of a search file; did you mean 'sha256'"),
        ({"X": {"key": "X"}}, "`data.X.path` is missing"),
        ({"X": {"path": "X.npy", "sha256": 5}}, "`data.X.sha256` is 5"),
        ({"X": {"path": "X.txt"}}, "`data.X`: .* is none of .npy"),
        ({"X": {"path": "https://me:secret@host/X.npy"}}, "`data.X`: https://host/X.npy has a user, a password"),
    ],
)
def test_what_is_wrong_with_a_reference_is_named_with_its_key(folder, changes, sentence):
    with pytest.raises(InvalidSearchError, match=sentence):
        _load(_write(folder, data=_references(folder, **changes)))


def test_a_splitter_by_groups_needs_groups(folder):
    with pytest.raises(InvalidSearchError, match=r"`cv` is a GroupKFold, which needs `data.groups`"):
        _load(_write(folder, cv={"splitter": "GroupKFold", "n_splits": 3}))
