"""Copies in S3, as moto serves it on this machine, through the real driver."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mirrored_run
import pytest
import scripted_run
from run_contents import read_contents
from scripted_runtime import ScriptedRuntime, scripted_runtime
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.backup import Backup, restore
from selfreward_lite.system.errors import UserError

pytestmark = pytest.mark.server  # moto, and runs that are killed; a minute
ADDRESS = "s3://copies/runs"
HELPERS = Path(mirrored_run.__file__).parent
SECRET = "a-secret-of-this-test"


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    """The driver, with an empty bucket."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    system.mkdir("copies")
    yield system
    system.rm("copies", recursive=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole") / "run"
    scripted_run.run(folder)
    return read_contents(folder)


@pytest.mark.parametrize("sent", [12, 30])
def test_a_run_killed_while_sending_goes_on_elsewhere_with_equal_result(tmp_path, s3, whole, sent):
    command = [sys.executable, mirrored_run.__file__, str(tmp_path / "first" / "run"), ADDRESS]
    places = os.pathsep.join([str(HELPERS), str(HELPERS.parents[1]), *filter(None, sys.path)])
    ended = subprocess.run(
        [*command, str(sent)], capture_output=True, env={**os.environ, "PYTHONPATH": places}
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    second = tmp_path / "second" / "run"
    assert restore(ADDRESS, second)
    with Store.read(second) as store:
        committed = sum(len(store.done_items(t, stage)) for t, stage, *_ in store.stages())
    assert committed > 0
    assert mirrored_run.run(second, ADDRESS) == []
    assert read_contents(second) == whole
    third = tmp_path / "third" / "run"
    assert restore(ADDRESS, third)
    assert read_contents(third) == {**whole, "base": {}}
    for path in (tmp_path / "second").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    for path in s3.find(ADDRESS):
        assert SECRET.encode() not in s3.cat_file(path)
    manifests = [path for path in s3.find(ADDRESS) if "manifest" in path]
    s3.rm_file(manifests[0])
    with pytest.raises(UserError, match="no copy of a run there"):
        restore(ADDRESS, tmp_path / "fourth" / "run")


def test_one_command_starts_and_resumes_on_another_machine(tmp_path, s3, monkeypatch):
    @contextmanager
    def runtime(backend: str) -> Iterator[ScriptedRuntime]:
        yield scripted_runtime(ChatFormat.load(TINY_MODEL))

    monkeypatch.setattr("selfreward_lite.run.runtime.open_runtime", runtime)
    same = ["run", "--mirror", ADDRESS, "--restore-from", f"{ADDRESS}/", "--gates", "report"]
    for key, value in scripted_run.SMALL.items():
        if key != "gates.mode":
            same += ["--set", f"{key}={value}"]
    for iterations, words in (("1", ""), ("2", "restored from its copy"), ("2", "is here already")):
        runs = tmp_path / f"machine-{iterations}"
        ended = CliRunner().invoke(
            main.app, [*same, "--runs-dir", str(runs), "--iterations", iterations]
        )
        assert ended.exit_code == 0, ended.output
        assert words in ended.output
        assert bool(words) or "restored" not in ended.output
        with Store.read(runs / "tiny") as store:
            assert store.newest() == int(iterations)


def test_what_is_wrong_with_a_bucket_is_said(tmp_path, s3, monkeypatch):
    with Store.write(tmp_path / "run") as store:
        with pytest.raises(UserError, match="cannot be used .*bucket does not exist"):
            Backup(store, "s3://nowhere/runs", print)
        said: list[str] = []
        copies = Backup(store, ADDRESS, said.append)
        s3.rm("copies", recursive=True)
        copies.copy()
        assert "not copied there" in said[0] and "the run continues" in said[0]
        s3.mkdir("copies")
        copies.copy()
        assert "copied there again" in said[1]
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # nobody listens there
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
            with pytest.raises(UserError, match="cannot be used .*EndpointConnectionError"):
                Backup(store, ADDRESS, print)
