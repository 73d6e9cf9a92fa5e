"""Published folders: files for PEFT and TRL, complete cards, no path of this machine."""

import json
import shutil
from pathlib import Path

import pytest
import scripted_run
from huggingface_hub import DatasetCard, ModelCard
from typer.testing import CliRunner

from selfreward_lite.cli import main
from selfreward_lite.data.records import JudgmentPair, Prompt, Response, ResponsePair
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.report import model_card
from selfreward_lite.system.errors import UserError
from selfreward_lite.training.rows import TOO_LONG

LLAMA = "unsloth/llama-3-8b-Instruct-bnb-4bit@" + "a" * 40
OASST = "OpenAssistant/oasst1@" + "b" * 40
HOSTILE = "<script>alert(1)</script>\n```\n# Not a heading\n---\nlicense: mit\n---\n![x](http://evil/x.png)"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "night"
    scripted_run.copy(folder)
    for number in range(3):
        config = {
            "peft_type": "LORA",
            "r": 16,
            "base_model_name_or_path": str(TINY_MODEL),
            "revision": None,
        }
        (folder / f"M{number}" / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def of_llama(run, tmp_path) -> Path:
    """The same run, as if it had been made of repositories; one held-out answer is hostile."""
    folder = tmp_path / "runs" / "night"
    shutil.copytree(run, folder)
    with Store.write(folder) as store:
        settings = store.fact("settings")
        settings["model"] |= {"base": LLAMA, "origin": "unsloth/llama-3-8b-Instruct"}
        settings["seed_stage"]["ranked"] = OASST
        store.state("settings", settings)
        store._db.execute("UPDATE record_response SET text = ? WHERE model = 'M2'", (HOSTILE,))
    return folder


def adapter(folder: Path, out: Path) -> Path:
    with Store.read(folder) as store:
        return model_card.write_adapter(store, 2, out)


def pairs(folder: Path, out: Path) -> Path:
    with Store.read(folder) as store:
        return model_card.write_pairs(store, out)


def test_an_adapter_names_its_base_on_the_hub_and_no_local_folder(of_llama, tmp_path):
    out = adapter(of_llama, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter.gguf",
    }
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "unsloth/llama-3-8b-Instruct-bnb-4bit"
    assert config["revision"] == "a" * 40
    for path in out.iterdir():
        assert str(TINY_MODEL.parent).encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_model_card_is_read_by_the_hub_and_is_complete(of_llama, tmp_path):
    card = ModelCard.load(adapter(of_llama, tmp_path / "out") / "README.md")
    assert card.data.base_model == "unsloth/llama-3-8b-Instruct-bnb-4bit"
    assert card.data.license == "llama3"
    assert card.data.library_name == "peft"
    assert card.data.datasets == ["OpenAssistant/oasst1"]
    for words in (
        "## Method",
        "K = 3 responses",
        "N = 3 judgments",
        "beta 0.1",
        "## Data",
        "revision `" + "b" * 40,
        "| evaluation prompts | 6 |",
        "## Metrics",
        "|  | M0 | M1 | M2 |",
        "judge pair accuracy",
        "pick the longer: pair accuracy",
        "judge forced share",
        "## Versions and hardware",
        "torch ",
        "no GPU",
        "## Limits",
        "## License",
        "Built with Meta Llama 3",
        "2401.10020",
        "2407.19594",
        "unsloth/llama-3-8b-Instruct",
    ):
        assert words in card.text, words


def test_hostile_text_in_a_card_is_no_markup(of_llama, tmp_path):
    text = (adapter(of_llama, tmp_path / "out") / "README.md").read_text()
    assert "alert(1)" in text, "the example is there"
    for line in text.splitlines():
        if any(
            part in line
            for part in ("<script>", "```", "# Not a heading", "evil/x.png", "license: mit")
        ):
            assert line.startswith("    "), line
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "llama3"


@pytest.mark.slow
def test_pairs_are_as_trl_takes_them_every_one_of_them(of_llama, tmp_path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational

    out = pairs(of_llama, tmp_path / "out")
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    with Store.read(of_llama) as store:
        assert len(rows) == store.count(ResponsePair) + store.count(JudgmentPair) > 0
    for row in rows:
        assert is_conversational(row)
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert (
            [turn["role"] for turn in row["chosen"]]
            == [turn["role"] for turn in row["rejected"]]
            == ["assistant"]
        )
        assert row["chosen"] != row["rejected"]
        assert row["chosen_score"] > row["rejected_score"]
        assert row["kind"] in ("response", "judgment")
    assert {row["iteration"] for row in rows} == {1, 2}
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "llama3"
    assert card.data.configs[0]["data_files"][0]["path"] == "data/train-*"
    assert (
        f"{len([row for row in rows if row['kind'] == 'response'])} pairs of responses" in card.text
    )
    assert "0 of them were not trained on" in card.text


def test_a_card_says_what_was_done_and_not_what_was_set(run, tmp_path):
    """Two of three iterations are over, the second with fewer prompts and one row too long."""
    folder = tmp_path / "night"
    shutil.copytree(run, folder)
    with Store.write(folder) as store:
        settings = store.fact("settings")
        settings |= {"iterations": 3, "judge": {**settings["judge"], "score": "expected"}}
        store.state("settings", settings)
        asked = sorted({one.prompt_id for one in store.records(Response, iteration=2, model="M1")})
        for other in asked[2:]:
            store._db.execute(
                "DELETE FROM record_response WHERE prompt_id = ? AND iteration = 2", (other,)
            )
        for kind in ("responsepair", "judgmentpair"):
            store._db.execute(f"DELETE FROM record_{kind} WHERE iteration = 2")
        store._db.execute("INSERT INTO drops VALUES (1, 'training', 'whole', ?, 1)", (TOO_LONG,))
        first = store.count(Prompt, iteration=1)
    model, data = (
        folder_.joinpath("README.md").read_text()
        for folder_ in (adapter(folder, tmp_path / "a"), pairs(folder, tmp_path / "p"))
    )
    assert f"iteration 1: {first} prompts" in model
    assert "iteration 2: 2 prompts" in model
    assert "iteration 3" not in model
    assert "iteration 2" not in data
    assert "the mean of the expected scores of a response's judgments" in data
    assert "1 of them were not trained on, because they are longer than" in data


@pytest.mark.slow
def test_a_trainer_takes_the_pairs_as_they_are(run, tmp_path):
    """TRL's own trainer, on the tiny base, reads the columns without a word about them."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    rows = load_dataset(
        str(pairs(run, tmp_path / "out")), split="train", cache_dir=str(tmp_path / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "o"),
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(TINY_MODEL),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-2)


def test_a_run_without_pairs_has_none_to_publish(tmp_path):
    scripted_run.copy(tmp_path / "run", iterations="0")
    with pytest.raises(UserError, match="made no pairs yet"):
        pairs(tmp_path / "run", tmp_path / "out")


def test_the_tiny_base_claims_no_licence_that_is_not_its_own(run, tmp_path):
    card = ModelCard.load(adapter(run, tmp_path / "out") / "README.md")
    assert card.data.license is None
    assert "Llama 3" not in card.text
    assert "the tiny base that ships with it" in card.text


@pytest.mark.parametrize(
    ("base", "licence", "says"),
    [
        ("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "llama3.2", "Llama 3.2 Community License"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "llama3.1", "Llama 3.1 Community License"),
        ("unsloth/llama-3-8b-Instruct-bnb-4bit", "llama3", "Built with Meta Llama 3."),
        ("/input/a-folder-of-mine", "llama3", "Built with Meta Llama 3."),  # by its origin
        ("someone/my-llama-3.1-finetune", "llama3.1", "Llama 3.1 Community License"),
        ("Qwen/Qwen3-8B", "apache-2.0", "under the Apache License 2.0."),
        ("unsloth/Qwen3-4B-Instruct-2507-bnb-4bit", "apache-2.0", "under the Apache License 2.0."),
        ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0", "under the Apache License 2.0."),
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "apache-2.0", "under the Apache License 2.0."),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "apache-2.0", "under the Apache License 2.0."),
        ("unsloth/mistral-7b-instruct-v0.3", "apache-2.0", "under the Apache License 2.0."),
        ("google/gemma-3-1b-it", "gemma", "subject to the Gemma Terms of Use found at"),
    ],
)
def test_the_licence_is_that_of_the_base(of_llama, tmp_path, base, licence, says):
    card = card_of(of_llama, tmp_path, base)
    assert card.data.license == licence
    assert says in card.text


@pytest.mark.parametrize(
    "base",
    [
        "Qwen/Qwen2.5-3B-Instruct",  # a license for research
        "Qwen/Qwen2.5-72B-Instruct",
        "someone/Qwen3-8B-of-mine",  # its maker may have chosen another
        "unsloth/DeepSeek-R1-0528-Qwen3-8B",
        "mistralai/Ministral-8B-Instruct-2410",
        "mistralai/Mistral-Small-24B-Instruct-2501",
    ],
)
def test_a_licence_that_is_not_known_is_not_claimed(of_llama, tmp_path, base):
    card = card_of(of_llama, tmp_path, base)
    assert card.data.license is None
    assert "## License" not in card.text


def card_of(run: Path, out: Path, base: str) -> ModelCard:
    """The card of a run on this base; one on a folder has an origin."""
    is_folder = base.startswith("/")
    with Store.write(run) as store:
        settings = store.fact("settings")
        settings["model"]["base"] = base if is_folder else f"{base}@{'a' * 40}"
        settings["model"]["origin"] = "unsloth/llama-3-8b-Instruct" if is_folder else None
        store.state("settings", settings)
    return ModelCard.load(adapter(run, out / "out") / "README.md")


class Api:
    """The two calls that an upload makes, as the hub's library declares them."""

    calls: list = []

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self.calls.append(("create", repo_id, repo_type, private))

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message):
        self.calls.append(
            (
                "upload",
                repo_id,
                repo_type,
                sorted(path.name for path in Path(folder_path).iterdir()),
            )
        )


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    Api.calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api.calls


def test_nothing_is_sent_but_to_the_repository_that_is_named(of_llama, tmp_path, hub):
    out = adapter(of_llama, tmp_path / "a")
    data = pairs(of_llama, tmp_path / "d")
    assert not hub, "writing sends nothing"
    assert (
        model_card.push(out, "me/llama-3-judge", True) == "https://huggingface.co/me/llama-3-judge"
    )
    assert model_card.push(data, "me/pairs", False) == "https://huggingface.co/datasets/me/pairs"
    assert [call[:3] for call in hub] == [
        ("create", "me/llama-3-judge", "model"),
        ("upload", "me/llama-3-judge", "model"),
        ("create", "me/pairs", "dataset"),
        ("upload", "me/pairs", "dataset"),
    ]
    assert [call[3] for call in hub if call[0] == "create"] == [True, False]


@pytest.mark.parametrize("name", ["night", "a/b/c", "me/spaces are bad", "../x", "me/--"])
def test_a_name_that_is_no_repository_sends_nothing(of_llama, tmp_path, hub, name):
    out = adapter(of_llama, tmp_path / "a")
    with pytest.raises(UserError, match="owner/name"):
        model_card.push(out, name, True)
    assert not hub


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "set HF_TOKEN to a token that may write there"),
        (403, "name a repository of your own"),
        (502, "run the same command again"),
    ],
)
def test_what_the_hub_refuses_is_one_line(of_llama, tmp_path, monkeypatch, status, says):
    import httpx
    from huggingface_hub import errors

    def refuse(self, repo_id, **_):
        answer = httpx.Response(
            status, request=httpx.Request("POST", "https://hub.test/api/repos/create")
        )
        raise errors.HfHubHTTPError(f"{status} for url", response=answer)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    out = adapter(of_llama, tmp_path / "a")
    with pytest.raises(UserError, match=says) as caught:
        model_card.push(out, "me/mine", True)
    assert "download" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_folder_is_not_sent(tmp_path, hub):
    (tmp_path / "secrets").mkdir()
    with pytest.raises(UserError, match="holds no adapter and no pairs"):
        model_card.push(tmp_path / "secrets", "me/x", True)
    assert not hub


def test_the_commands_say_where_things_are_and_push_needs_a_name(of_llama, tmp_path, hub):
    runner, runs = CliRunner(), ["--name", "night", "--runs-dir", str(of_llama.parent)]
    made = runner.invoke(main.app, ["export", "adapter", *runs, "--out", str(tmp_path / "out")])
    folder = Path(json.loads(made.stdout.splitlines()[-1])["folder"])
    assert folder.name == "night-M2-adapter"
    assert runner.invoke(main.app, ["export", "push", str(folder)]).exit_code == 2
    assert not hub
    pushed = runner.invoke(main.app, ["export", "push", str(folder), "me/mine"])
    assert json.loads(pushed.stdout.splitlines()[-1])["address"].endswith("me/mine")
    made = runner.invoke(main.app, ["export", "pairs", *runs, "--out", str(tmp_path / "out")])
    assert json.loads(made.stdout.splitlines()[-1])["folder"].endswith("night-pairs")
