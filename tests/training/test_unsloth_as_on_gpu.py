"""unsloth's own trainers, and its own Llama with fused kernels, train what TRL and PEFT train.

On a machine without a GPU it takes a CPU backend that has neither (see `test_unsloth.py`). Here it
is made to take what it takes on a GPU: tests/helpers/unsloth_on_cpu.py says how. Not covered:
bfloat16, NF4, checkpointing of activations.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

pytestmark = pytest.mark.unsloth
PROGRAM = ROOT / "tests" / "helpers" / "unsloth_on_cpu.py"


def run(mode: str, folder: Path) -> dict[str, Any]:
    """What the program says in this mode."""
    paths = os.pathsep.join([str(ROOT), str(PROGRAM.parent)])
    done = subprocess.run(
        [sys.executable, PROGRAM, mode, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("as-on-gpu")
    return {"plain": run("plain", folder), **run("unsloth", folder)}


def test_it_is_the_version_that_users_have(found):
    pins = (ROOT / "requirements-gpu.txt").read_text(encoding="utf-8")
    assert f"unsloth=={found['version']}" in pins.splitlines()


def test_its_trainers_train_as_those_of_trl(found):
    plain, ours = found["plain"], found["trainers"]
    assert plain["classes"] == ["SFTTrainer", "DPOTrainer"]
    assert ours["classes"] == ["UnslothSFTTrainer", "UnslothDPOTrainer"]
    for method in ("sft", "dpo"):
        assert ours[method]["losses"] == pytest.approx(plain[method]["losses"], rel=1e-5)
        assert ours[method]["moved"] == pytest.approx(plain[method]["moved"], rel=1e-3)
    assert ours["dpo"]["margins"][0] == 0.0, "the reference is the model before"
    assert ours["dpo"]["margins"][1] == pytest.approx(plain["dpo"]["margins"][1], rel=1e-4)


def test_its_kernels_train_as_peft(found):
    plain, ours = found["plain"], found["kernels"]
    assert len(ours["called"]) == 3, "one function for attention, its output and the MLP"
    assert all(name.startswith("apply_lora") for name in ours["called"]), "its fused kernels"
    for method in ("sft", "dpo"):  # within what float16 gives
        assert ours[method]["losses"] == pytest.approx(plain[method]["losses"], rel=2e-3)
        assert ours[method]["moved"] == pytest.approx(plain[method]["moved"], rel=0.01)
    assert ours["dpo"]["margins"][0] == 0.0, "the reference is the model before"
    # It would stay 0 if the kernels took the policy for the reference.
    assert ours["dpo"]["margins"][1] == pytest.approx(plain["dpo"]["margins"][1], rel=0.02)
