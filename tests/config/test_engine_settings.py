"""Servers in the settings: only plain addresses, and never a password."""

import pytest

from selfreward_lite import config
from selfreward_lite.system.errors import ConfigError


def load(servers: str, **more: str) -> config.Settings:
    return config.load("tiny", {"engine.kind": "server", "engine.servers": servers, **more})


def test_addresses_of_servers_lose_a_slash_at_their_end():
    engine = load('["http://127.0.0.1:8000/", "https://gpu2"]', **{"engine.patience": "0.5"}).engine
    assert engine.servers == ("http://127.0.0.1:8000", "https://gpu2")
    assert engine.patience == 0.5
    assert config.load("tiny").engine.kind == "llama"


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ("[]", "kind=server needs addresses"),
        ('["file:///etc/passwd"]', "is no address of a server; write it as http://HOST:PORT"),
        ('["ftp://gpu1:8000"]', "is no address of a server"),
        ('["gpu1:8000"]', "is no address of a server"),
        ('["http://"]', "is no address of a server"),
        ('["http://gpu1:port"]', "is no address of a server"),
        ('["http://gpu1:8000\\nX: y"]', "is no address of a server"),
        ('["http://gpu1:8000/v1"]', "end it behind the port, as in http://HOST:PORT"),
        ('["http://gpu1:8000?a=b"]', "end it behind the port"),
        ('["http://gpu1:1", "http://gpu1:1/"]', "http://gpu1:1 is there twice"),
    ],
)
def test_anything_but_an_address_is_refused_in_one_line(servers, says):
    with pytest.raises(ConfigError) as error:
        load(servers)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["http://me:hunter2@gpu1:8000", "hunter2@gpu1"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(ConfigError) as error:
        load(f'["{address}"]')
    assert "hunter2" not in str(error.value)


def test_the_shared_folder_is_a_path_from_the_root():
    with pytest.raises(ConfigError, match="no path from the root"):
        config.load("tiny", {"engine.shared": "runs"})
