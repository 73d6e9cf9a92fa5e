"""The layout: who imports whom, how large a file and a function may be, what an import may cost."""

import ast
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "selfreward_lite"

# Bottom to top: a module imports only from modules above it in this list. It is the reading order, and the order in which
# data flows.
ORDER = [
    "errors", "intervals", "cards", "disk", "locks", "tenancy", "records", "prompts", "config", "datafiles", "parsing",
    "canaries", "chat", "tiny", "manifest", "hub", "store", "engines.base", "engines.kv", "engines.samples",
    "engines.device", "engines.adapter_file", "engines.batching", "engines.pace", "engines.loading", "engines.llama",
    "engines.child", "engines.process", "engines.live", "engines.shared", "engines.scripted", "engines", "stages.voice",
    "stages.likeness", "stages.prompts", "stages.responses", "stages.judgments", "stages.response_pairs", "stages.battles",
    "stages.ratings", "stages.judgment_pairs", "stages", "pairwise", "runner", "votes", "mirror", "seed", "judge_quality",
    "training_job", "checkpoints", "llama_folder", "shapes", "nf4", "backends", "train", "memory", "plan", "forecast",
    "jobs", "export", "parity", "equality", "quantise", "ollama", "full_model", "evaluate", "gates", "workshop", "tools",
    "run", "budget", "steps", "training_steps", "tripwires", "assess", "loop", "examine", "report", "series",
    "warning_signs", "explore", "figures", "report_page", "notebook", "talk", "display", "synthetic", "probes", "bench",
    "bench.rivals", "bench.costs", "bench.engine", "bench.tiny", "bench.settings", "bench.papers", "bench.claims",
    "bench.bases", "bench.packed", "bench.card", "bench.card_table", "bench.app", "bench.commands", "publish", "prune",
    "evaluate_command",
    "export_commands", "plan_command", "doctor", "llama_build", "ui", "ui.safe", "ui.conversation", "ui.shell",
    "ui.chat", "ui.compare", "ui.run", "ui.explore", "ui.progress", "ui.endpoints", "ui.page", "cli", "__main__",
]  # fmt: skip
TINY_ORDER = ["tasks", "answers", "score", "corpus", "ranked", "bias", "tokenizer", "build", ""]
# The child's program is named by the process that starts it; everything else must be imported downwards.
MAY_IMPORT = {
    "torch": {
        "checkpoints",
        "nf4",
        "backends",
        "train",
        "export",
        "parity",
        "llama_folder",
        "tiny.build",
        "bench.bases",
        "bench.packed",
        "probes",
    },
    "llama_cpp": {"engines.llama", "engines.loading", "parity", "equality", "quantise", "bench.rivals", "bench.costs", "probes"},
    "gradio": {
        "ui.shell",
        "ui.chat",
        "ui.compare",
        "ui.run",
        "ui.explore",
        "ui.progress",
        "ui.endpoints",
        "ui.page",
    },
    "matplotlib": {"figures", "notebook"},
    "IPython": {"notebook"},
    "pandas": {"notebook", "ui.progress"},
}
TOP_LEVEL = {
    "README.md",
    "app.py",
    "requirements.txt",
    "requirements-gpu.txt",
    "pyproject.toml",
    "LICENSE",
    "LOG.md",
    "notebooks",
    "selfreward_lite",
    "tests",
    ".ci",
    ".gitignore",
    ".gitattributes",
    ".github",
}
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 50, 6
# Named exceptions, with their reason.
MANY_PARAMETERS = {
    ("cli.py", "run"): "one parameter an option: typer reads the signature",
    ("export_commands.py", "merged"): "one parameter an option: typer reads the signature",
    ("evaluate_command.py", "compare"): "one parameter an option: typer reads the signature",
    ("evaluate_command.py", "judge_quality"): "one parameter an option: typer reads the signature",
    ("commands.py", "bench_engine"): "one parameter an option: typer reads the signature",
    ("endpoints.py", "chat"): "one parameter an argument of the endpoint: gradio reads the signature",
    ("endpoints.py", "compare"): "one parameter an argument of the endpoint: gradio reads the signature",
    ("engine.py", "judge_load"): "a load is described by as many numbers",
}


@cache
def modules() -> list[tuple[str, Path, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")
        found.append((name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@cache
def own(tree: ast.Module) -> set[str]:
    """The package's modules that a module imports, as names of the list."""
    known = {name for name, _, _ in modules()}
    found = {name.removeprefix("selfreward_lite.") for name in imports(tree) if name.startswith("selfreward_lite.")}
    return {name for name in found if name in known}


def place(name: str) -> int:
    return ORDER.index("tiny" if name.split(".")[0] == "tiny" else name)


def test_every_module_stands_in_the_order():
    names = {"tiny" if name.startswith("tiny") else name for name, _, _ in modules()} - {""}
    assert names == set(ORDER)


def test_no_module_imports_upwards():
    for name, _, tree in modules():
        for other in own(tree):
            if name.startswith("tiny") and other.startswith("tiny"):
                mine, theirs = (part.removeprefix("tiny").removeprefix(".") for part in (name, other))
                assert TINY_ORDER.index(theirs) < TINY_ORDER.index(mine) or not theirs, f"{name} imports {other}"
            elif name:
                assert place(other) < place(name), f"{name} imports {other}, which stands above it"


def test_the_readmes_tree_stands_in_this_order():
    tree = re.search(r"```\nselfreward_lite/\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    folders, listed = [], []
    for indent, name in re.findall(r"^( *)(\S+)", tree, re.MULTILINE):
        folders = [*folders[: len(indent) // 2 - 1], name.rstrip("/")]
        if name.endswith(".py"):
            listed.append(".".join(folders).removesuffix(".py"))
    known = [name for name in listed if name in ORDER]
    assert len(known) > 0.9 * len(ORDER)
    assert known == sorted(known, key=ORDER.index)


def test_the_exact_scorer_is_seen_by_evaluation_and_ranked_examples_only():
    importers = {name for name, _, tree in modules() if "selfreward_lite.tiny.score" in imports(tree)}
    assert importers == {"evaluate", "tiny.ranked"}
    # and what evaluation computes from it goes to the report, never to a stage, a gate or a trainer
    users = {name for name, _, tree in modules() if "evaluate" in own(tree)}
    assert users == {"assess", "examine", "bench.papers", "bench.tiny"}


def test_gates_are_handed_nothing_exact():
    from selfreward_lite.gates import Evidence

    assert set(Evidence.__dataclass_fields__) == {
        "file_faults", "trained", "rows", "rows_given", "moved_share", "losses", "first_margin", "logit_difference",
        "logit_change", "agreement", "adapter_share", "cut_share", "repetitive_share", "distinct_share", "read_share",
        "length_ratio", "judge_interval", "outside_interval", "outside_share", "self_change", "canary_score",
        "honest_score", "canaries_scored", "canaries_chosen",
    }  # fmt: skip
    source = (PACKAGE / "assess.py").read_text().split("def _evidence")[1].split("\ndef ")[0]
    known = set(re.findall(r'known(?:\[|\.get\()"(\w+)"', source))
    assert known == {
        "training_rows", "training_rows_given", "training_moved_share", "training_first_margin", "logit_difference",
        "logit_change", "greedy_agreement", "adapter_share", "repetitive_share",
        "distinct_share", "self_score", "canary_score", "honest_bad_score", "canaries_scored",
        "canaries_chosen",
    }  # fmt: skip


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_heavy_packages_stay_where_they_belong(package):
    importers = {
        name for name, _, tree in modules() if any(one == package or one.startswith(f"{package}.") for one in imports(tree))
    }
    assert importers <= MAY_IMPORT[package]


def test_importing_the_package_and_its_command_line_is_cheap():
    code = (
        "import sys; import selfreward_lite, selfreward_lite.cli, selfreward_lite.loop, selfreward_lite.tools; "
        "print([name for name in ('torch', 'llama_cpp', 'gradio', 'transformers', 'trl', 'datasets') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.strip() == "[]"


def test_no_import_cycles():
    graph = {name: own(tree) - {name} for name, _, tree in modules()}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        for other in graph.get(name, ()):
            visit(other, (*trail, name))

    for name in graph:
        visit(name, ())


def test_budgets_of_files_and_functions():
    for _, path, tree in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= FILE_LINES, f"{path.name}: {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{path.name}: {node.name} is too long"
                count = len(node.args.posonlyargs + node.args.args) - (
                    bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
                )
                assert count <= PARAMETERS or (path.name, node.name) in MANY_PARAMETERS, f"{path.name}: {node.name} takes {count}"


def test_budget_of_test_files():
    for path in (ROOT / "tests").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES, path.name


def test_every_module_says_what_it_knows():
    for name, path, tree in modules():
        if path.name != "__main__.py":
            assert ast.get_docstring(tree), f"{name or path} has no header"


def test_the_top_level_is_closed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in tracked.stdout.splitlines()} <= TOP_LEVEL


def test_stages_do_no_io_and_know_no_clock():
    banned = {"open", "time", "pathlib", "sqlite3", "datetime", "os", "subprocess"}
    for name, _, tree in modules():
        if name.startswith("stages"):
            assert not imports(tree) & banned, name


def test_no_stage_branches_on_the_preset():
    for name, path, _ in modules():
        if name.split(".")[0] in ("stages", "runner", "steps", "assess", "loop", "training_job", "train"):
            for before, after in pairwise(path.read_text().split("preset")):
                assert not after.lstrip().startswith(("==", "!=", "in (")), f"{path.name}: …{before[-40:]}preset{after[:20]}"
