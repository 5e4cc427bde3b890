"""A package that is missing where a payload is loaded is named, with its release where the payload was made."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sklearn.svm

from gridfleet.storage.errors import PayloadError
from gridfleet.storage.payloads import packages
from gridfleet.storage.payloads.format import dump, load

Content = Callable[..., memoryview]


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Content:
    """Dump an object of a package that is installed and gone afterwards, ``content("gone_x", "gone-x", 1.2)``."""

    def content(module: str, name: str, version: str) -> memoryview:
        site = tmp_path / "site-packages"
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (site / module).mkdir()
        (site / module / "__init__.py").write_text("")
        (site / module / "models.py").write_text("class Model: pass")
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/models.py,,\n")
        packages._distributions.cache_clear()
        with monkeypatch.context() as installed:
            installed.syspath_prepend(site)
            model = importlib.import_module(f"{module}.models").Model()
            dumped = memoryview(b"".join(dump("evaluation", model, what="estimator")))
        del sys.modules[module], sys.modules[f"{module}.models"]
        packages._distributions.cache_clear()
        return dumped

    return content


@pytest.mark.parametrize(("module", "name"), [("gone_x", "gone-x"), ("imb_x", "imbalanced-x")])
def test_a_missing_package_is_named_with_its_release_and_how_to_get_it(
    module: str, name: str, content: Content
) -> None:
    with pytest.raises(PayloadError) as missing:
        load(content(module, name, "1.2"))

    assert str(missing.value) == (
        f"No module named '{module}': the payload needs the module '{module}', which this worker does not have, at "
        f"least not as it is in {name} 1.2, the release where the search was submitted; install it for the workers too "
        f"(`pip install {name}==1.2`), or in their image, and start them again"
    )


def test_what_every_worker_has_is_not_listed_so_that_equal_data_stay_one_payload() -> None:
    content = b"".join(dump("evaluation", sklearn.svm.SVC, what="class"))

    assert b'"packages": {}' in content
    assert len(content) < 1_000


def test_what_the_scripts_modules_import_is_listed_as_well() -> None:
    content = b"".join(dump("evaluation", 1, what="number", modules={"pytest", "json", "nowhere"}))

    assert f'"packages": {{"pytest": "pytest {pytest.__version__}"}}'.encode() in content
