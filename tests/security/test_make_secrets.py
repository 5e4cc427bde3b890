"""`make secrets` writes where nobody else gets, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gridfleet.storage.settings import Settings
from tests.conftest import NOBODY

SCRIPT = Path(__file__).parents[2] / "deploy" / "make-secrets.sh"
NAME = "gridfleet_secret_key"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with nothing but the script, so that no secret of this machine is read or made."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(SCRIPT, tmp_path / "deploy")
    return tmp_path


def make_secrets(checkout: Path, folder: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
    variables = {"PATH": f"{path}{os.environ['PATH']}", "GRIDFLEET_SECRETS_DIR": folder}
    script = ["sh", str(checkout / "deploy" / SCRIPT.name)]
    return subprocess.run(script, env=variables, capture_output=True, text=True)


def test_a_folder_that_others_could_read_is_closed_and_kept_secrets_are_named(checkout: Path) -> None:
    secrets = checkout / "secrets"
    secrets.mkdir(mode=0o755)
    (secrets / NAME).write_text("k" * 64)

    done = make_secrets(checkout)

    assert done.returncode == 0, done.stderr
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert (secrets / NAME).read_text() == "k" * 64
    assert f"kept  ./secrets/{NAME}\n      others could read it until now" in done.stdout
    assert len(list(secrets.iterdir())) == 10
    assert "others" not in make_secrets(checkout).stdout


@pytest.mark.parametrize("key", [None, "k" * 64, " \t\n one line's end, and\nanother: %s \\n ü\n\n"])
def test_the_keys_of_workers_are_those_that_belong_to_the_secret_key(key: str | None, checkout: Path) -> None:
    file = checkout / "secrets" / "gridfleet_public_key"
    assert make_secrets(checkout).returncode == 0
    if key is not None:  # another than the one that the public key was made of
        (checkout / "secrets" / NAME).write_text(key)

    done = make_secrets(checkout)

    secret_key = (checkout / "secrets" / NAME).read_text()
    assert f"{'kept' if key is None else 'made'}  ./secrets/gridfleet_public_key" in done.stdout
    settings = Settings(secret_key=secret_key)
    assert file.read_text() == settings.signer().public_key
    assert file.stat().st_mode & 0o777 == 0o644
    worker_key = file.with_name("gridfleet_worker_key").read_text()
    assert worker_key == settings.for_workers().worker_key.get_secret_value()
    assert f"{'kept' if key is None else 'made'}  ./secrets/gridfleet_worker_key" in done.stdout


def test_without_openssl_it_is_said_how_to_make_the_keys_of_workers(checkout: Path) -> None:
    (checkout / "openssl").write_text("#!/bin/sh\nexit 1\n")
    (checkout / "openssl").chmod(0o755)
    files = {name: checkout / "secrets" / f"gridfleet_{name}_key" for name in ("public", "worker")}

    done = make_secrets(checkout, path=f"{checkout}:")

    assert done.returncode == 1
    for name, file in files.items():
        made_so = f"docker compose run --rm --no-deps demo {name}-key >./secrets/gridfleet_{name}_key"
        assert made_so in done.stderr
        assert not file.exists()
        file.write_text("made as it says")
    assert make_secrets(checkout, path=f"{checkout}:").returncode == 0
    assert {file.read_text() for file in files.values()} == {"made as it says"}


@pytest.mark.parametrize("named", ["secrets", "secrets/", "secrets//"])
def test_a_folder_that_is_a_link_is_refused(named: str, checkout: Path) -> None:
    elsewhere = checkout / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (checkout / "secrets").symlink_to("elsewhere")

    done = make_secrets(checkout, named)

    assert done.returncode == 1
    assert done.stderr == "secrets is a link; remove it, or set GRIDFLEET_SECRETS_DIR to a folder of your own\n"
    assert list(elsewhere.iterdir()) == []
    assert elsewhere.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("leads_to", ["own", "nowhere"])
def test_a_secret_that_is_a_link_is_refused_and_one_that_is_being_made_is_not_written_through_a_link(
    leads_to: str, checkout: Path
) -> None:
    secrets = checkout / "secrets"
    secrets.mkdir()
    (checkout / "own").write_text("own")
    (secrets / f"{NAME}.new").symlink_to(checkout / leads_to)
    assert make_secrets(checkout).returncode == 0
    assert len((secrets / NAME).read_text()) == 64

    (secrets / NAME).unlink()
    (secrets / NAME).symlink_to(checkout / leads_to)
    done = make_secrets(checkout)

    assert done.returncode == 1
    assert f"./secrets/{NAME} is a link" in done.stderr
    assert (checkout / "own").read_text() == "own"
    assert not (checkout / "nowhere").exists()


@needs_root
@pytest.mark.parametrize("name", ["", NAME])
def test_what_belongs_to_another_user_is_refused(name: str, checkout: Path) -> None:
    assert make_secrets(checkout).returncode == 0
    path = checkout / "secrets" / name
    os.chown(path, NOBODY, NOBODY)

    done = make_secrets(checkout)

    assert done.returncode == 1
    assert "belongs to another user" in done.stderr


def test_a_file_in_place_of_the_folder_is_refused(checkout: Path) -> None:
    (checkout / "secrets").touch()

    done = make_secrets(checkout)

    assert done.returncode == 1
    assert (checkout / "secrets").read_bytes() == b""
