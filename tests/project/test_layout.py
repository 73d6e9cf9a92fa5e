"""Layout: twelve folders, imports that run down the list, heavy packages in few files."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "selfreward_lite"
# Top to bottom: a file imports only from its own folder and from folders above it.
FOLDERS = [
    "system",
    "config",
    "data",
    "engine",
    "models",
    "method",
    "training",
    "run",
    "report",
    "app",
    "bench",
    "cli",
]
HEAVY = {
    "torch": {
        "training.checkpoints",
        "training.backends",
        "training.token_trainers",
        "training.trainer",
        "training.group",
        "training.launch",
        "training.rank",
        "training.tiny_base.build",
        "models.nf4",
        "models.gguf_export",
        "models.hf_export",
        "models.parity",
        "models.random_models",
        "models.probe",
        "models.triton_probe",
    },
    "triton": {"models.triton_probe"},
    "llama_cpp": {
        "engine.llama",
        "engine.loading",
        "models.parity",
        "models.probe",
        "models.quantize",
        "bench.baselines",
    },
    "gradio": {
        "app.widgets",
        "app.api",
        "app.inputs",
        "app.page",
        "app.tabs",
    },
    "matplotlib": {"report.plots", "report.notebook"},
    "IPython": {"report.notebook"},
    "pandas": {"report.notebook", "app.tabs.progress"},
}
TOP_LEVEL = {
    "README.md", "LICENSE", "app.py", "pyproject.toml", "requirements.txt",
    "requirements-gpu.txt",
    "selfreward_lite", "tests", "notebooks", "docs", ".ci", ".github", ".gitignore",
}  # fmt: skip


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Every module by its dotted name below the package; the package itself is ""."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@cache
def graph() -> dict[str, set[str]]:
    """Which of the package's modules each of them imports."""
    found = {}
    for name, (_, tree) in modules().items():
        inside = {
            one.removeprefix("selfreward_lite.")
            for one in imported(tree)
            if one.startswith("selfreward_lite.")
        }
        found[name] = {one for one in inside if one in modules()} - {name}
    return found


def folder(name: str) -> str:
    return name.split(".")[0]


def test_the_package_is_twelve_folders():
    held = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert held == {"__init__.py", "__main__.py", *FOLDERS}
    for name in FOLDERS:
        assert len(ast.get_docstring(modules()[name][1]).splitlines()) >= 3, (
            f"{name}/__init__.py says too little"
        )


def test_imports_run_down_the_list_of_folders():
    for name, others in graph().items():
        for other in others if folder(name) in FOLDERS else ():
            place = FOLDERS.index(folder(name))
            assert FOLDERS.index(folder(other)) <= place, f"{name} imports {other}"
            assert {folder(name), folder(other)} != {"run", "report"}, f"{name} imports {other}"
            assert folder(other) != "bench" or folder(name) in ("bench", "cli"), (
                f"{name} imports {other}"
            )


def test_there_is_no_import_cycle():
    tuple(TopologicalSorter(graph()).static_order())


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_stay_where_they_belong(package):
    users = {
        name
        for name, (_, tree) in modules().items()
        if any(one.split(".")[0] == package for one in imported(tree))
    }
    allowed = HEAVY[package]
    folders = {name.rpartition(".")[0] for name in users}
    assert {name for name in users if name.rpartition(".")[0] not in allowed} | (
        folders & allowed
    ) == allowed


def test_importing_the_command_line_is_cheap():
    code = (
        "import sys; import selfreward_lite.cli.main, selfreward_lite.run.loop, "
        "selfreward_lite.run.runtime; heavy = ('torch', 'llama_cpp', 'gradio', 'transformers', "
        "'trl', 'datasets'); print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_method_is_pure():
    banned = {"torch", "sqlite3", "os", "subprocess", "time", "datetime"}
    readers = {"method.templates", "method.canaries"}  # of the texts that ship with the package
    for name, (_, tree) in modules().items():
        if folder(name) == "method":
            more = set() if name in readers else {"io", "pathlib"}
            calls = {ast.unparse(one.func) for one in ast.walk(tree) if isinstance(one, ast.Call)}
            assert not imported(tree) & (banned | more), name
            assert "open" not in calls, name


def test_nothing_branches_on_the_preset():
    for name, (_, tree) in modules().items():
        if folder(name) in ("method", "training", "run") and name != "run.prepare":
            assert not branches_on_preset(tree), name


def branches_on_preset(tree: ast.Module) -> bool:
    compared = (
        ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Match)
    )
    return any("attr='preset'" in one or "id='preset'" in one for one in compared)


def test_exact_scores_reach_reports_only():
    """Nothing that trains, gates or selects may see the tiny world's exact scorer."""
    score_users = {name for name, others in graph().items() if "data.tiny.score" in others}
    assert score_users == {"method.metrics", "data.tiny.ranked", "bench.paper_table"}
    exact = {"score_exactly", "exact_win_rate", "ExactScores", "exact_metrics"}
    users = {
        name
        for name, (_, tree) in modules().items()
        for one in ast.walk(tree)
        if (one.id if isinstance(one, ast.Name) else getattr(one, "attr", None)) in exact
    }
    assert users == {"method.metrics", "run.steps.measure", "run.evaluate", "bench.seeds"}


def test_files_stay_short():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path.name


def test_every_module_says_what_it_is_for():
    for name, (path, tree) in modules().items():
        assert path.name == "__main__.py" or ast.get_docstring(tree), f"{name} has no docstring"


def test_tests_import_helpers_and_no_tests():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert options["tool"]["pytest"]["ini_options"]["pythonpath"] == ["tests/helpers"]
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.stem.startswith("test_")]
    names = {path.stem for path in tests}
    for path in [*tests, *(ROOT / "tests" / "helpers").glob("*.py")]:
        for one in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not names & set(one.split(".")), f"{path.name} imports {one}"


def test_the_top_level_is_closed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} <= TOP_LEVEL
