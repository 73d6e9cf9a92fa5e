"""Training on the real base, in 4 bits, on the CPU: what moves, what stays, the reference."""

import hashlib
import inspect
import json
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from training_jobs import BY_TRANSFORMERS, make_job
from transformers import Trainer, TrainerCallback

from selfreward_lite import config
from selfreward_lite.config.settings import Model
from selfreward_lite.data.records import Judgment, JudgmentPair, Prompt, Response, ResponsePair
from selfreward_lite.data.tiny import TINY_MODEL
from selfreward_lite.models import nf4
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.chat_template import user
from selfreward_lite.run.runtime import open_runtime
from selfreward_lite.system.errors import TrainingError
from selfreward_lite.training import backends, trainer
from selfreward_lite.training import rows as row_lists
from selfreward_lite.training.job import Job, TrainingResult
from selfreward_lite.training.rows import PairTexts
from selfreward_lite.training.token_trainers import TokenDPOTrainer, TokenSFTTrainer, make_trainer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def work() -> Iterator[Callable[[Job], tuple[dict, list[dict]]]]:
    """Train in a real child; return its closing facts and what it logged."""
    with open_runtime() as runtime:

        def train_and_log(job: Job) -> tuple[dict, list[dict]]:
            logged: list[dict] = []

            def report(said):
                if "values" in said:
                    logged.append(said["values"])

            facts = runtime.train(job, Path(job.adapter_out).parent, report)
            return facts, logged

        yield train_and_log


@pytest.fixture(scope="module")
def trained(tmp_path_factory, work) -> dict:
    """M0 by SFT, then M1 and M2 by DPO, each from the one before."""
    tiny, chat = config.load("tiny"), ChatFormat.load(TINY_MODEL)
    folder = tmp_path_factory.mktemp("trained")
    out = {"folder": folder, "M0": work(make_job(folder, tiny, chat, "sft", name="M0"))}
    out["M1"] = work(make_job(folder, tiny, chat, "dpo", adapter_in=folder / "M0", name="M1"))
    out["M2"] = work(make_job(folder, tiny, chat, "dpo", adapter_in=folder / "M1", name="M2"))
    return out


def weights(trained, name) -> dict[str, torch.Tensor]:
    return load_file(trained["folder"] / name / "adapter_model.safetensors")


def test_first_dpo_step_has_margin_zero_and_ln_2(trained):
    # Defect 14 of other projects: a wrong reference shows from the second DPO round on.
    for name in ("M1", "M2"):
        facts, logged = trained[name]
        assert facts.first_margin == 0.0
        assert logged[0]["rewards/chosen"] == logged[0]["rewards/rejected"] == 0.0
        anchor = -logged[0][
            "logps/chosen"
        ]  # with weight 1, the anchor adds a mean log-likelihood per token
        assert logged[0]["loss"] < 0.6931 + anchor


def first_gradient(
    folder, tiny, chat, method, rows, micro_batch, spoil=lambda made: None, **changes
) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of a step, in DPO away from the reference."""
    job = make_job(
        folder, tiny, chat, method, batch=32, micro_batch=micro_batch, epochs=1, **changes
    )
    model = backends.load_model(BY_TRANSFORMERS, job, torch.float32)
    dealt = row_lists.deal_rows(rows, 32, micro_batch, 0, 1)
    made = make_trainer(model, job, dealt, micro_batch, torch.float32)
    torch.manual_seed(0)
    for _, weight in trainer._named_trainable(made.model):
        weight.data = torch.randn_like(weight.data, dtype=torch.float32) / 50
    kept = []

    class Keeper(TrainerCallback):
        def on_pre_optimizer_step(self, *_, **__):
            kept.extend(weight.grad.flatten() for _, weight in trainer._named_trainable(made.model))

    made.add_callback(Keeper())
    spoil(made)
    made.args.max_grad_norm = 0.0
    made.optimizer = torch.optim.SGD([one for _, one in trainer._named_trainable(made.model)], 0.0)
    return made.train().training_loss, torch.cat(kept)


@pytest.mark.parametrize(
    "anchor", [1.0, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.0, 10.0))]
)
@pytest.mark.parametrize("count", [9, pytest.param(32, marks=pytest.mark.slow)])
def test_a_dpo_step_does_not_depend_on_the_micro_batch(tmp_path, tiny, chat, count, anchor):
    # TRL's mean of means gave 9 rows gradients that differ by 0.1 to 1.4 of their norm.
    rng = random.Random(count)
    words = [" ".join(rng.sample("abcdefgh", rng.randint(2, 8))) for _ in range(count)]
    rows = [
        {
            "prompt_ids": chat.prompt_ids(user(f"Sort the letters {word}.")),
            "chosen_ids": chat.completion_ids(f"The answer is {word}." * (1 + index % 3)),
            "rejected_ids": chat.completion_ids(f"{word} Hope this helps you today."),
        }
        for index, word in enumerate(words)
    ]
    loss, gradient = first_gradient(tmp_path, tiny, chat, "dpo", rows, 32, anchor=anchor)
    for size in (8, 4, 1):
        other_loss, other = first_gradient(tmp_path, tiny, chat, "dpo", rows, size, anchor=anchor)
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert float((other - gradient).norm() / gradient.norm()) < 1e-4


@pytest.mark.parametrize("counted", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_token_weighs_the_same_in_sft_whoever_counts(tmp_path, tiny, chat, counted):
    """A backend that wraps the model may keep Trainer from counting the tokens of a step."""

    def count_nothing(made):
        made.model_accepts_loss_kwargs = counted

    rows = [
        {
            "prompt_ids": list(chat.prompt_ids(user("Sort the letters c a b."))),
            "completion_ids": list(chat.completion_ids("The answer is a b c." * (1 + index % 4))),
        }
        for index in range(9)
    ]
    whole, gradient = first_gradient(tmp_path, tiny, chat, "sft", rows, 32)
    for size in (8, 1):
        loss, other = first_gradient(tmp_path, tiny, chat, "sft", rows, size, count_nothing)
        assert loss == pytest.approx(whole, rel=1e-5)
        assert float((other - gradient).norm() / gradient.norm()) < 1e-5


def test_without_anchor_the_first_loss_is_ln_2(tmp_path, tiny, chat, trained, work):
    facts, logged = work(
        make_job(
            tmp_path,
            tiny,
            chat,
            "dpo",
            adapter_in=trained["folder"] / "M1",
            name="pure",
            anchor=0.0,
        )
    )
    assert logged[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert logged[-1]["loss"] < 0.6
    assert logged[-1]["rewards/margins"] > 0


def test_training_moves_every_weight_and_stays_float32(trained):
    # Defect 15: frozen adapters, or steps that round to nothing.
    for name in ("M0", "M1", "M2"):
        assert trained[name][0].moved_share > 0.9
        assert trained[name][0].steps >= 10
        assert {tensor.dtype for tensor in weights(trained, name).values()} == {torch.float32}


def test_each_iteration_goes_on_from_the_one_before(tmp_path, tiny, chat, trained, work):
    # With a rate of nearly nothing, what comes out is what training began with: M1 itself, no fresh
    # adapter.
    job = make_job(
        tmp_path,
        tiny,
        chat,
        "dpo",
        adapter_in=trained["folder"] / "M1",
        name="still",
        learning_rate=1e-12,
        epochs=1,
    )
    work(job)
    still, before = (
        load_file(tmp_path / "still" / "adapter_model.safetensors"),
        weights(trained, "M1"),
    )
    assert all((still[name] - weight).abs().max() < 1e-6 for name, weight in before.items())
    assert max(weight.abs().max() for name, weight in before.items() if "lora_B" in name) > 1e-4
    assert any(
        (weights(trained, "M2")[name] - weight).abs().max() > 1e-4
        for name, weight in before.items()
    )


def logits(adapter: Path | None) -> torch.Tensor:
    base = nf4.load_model(TINY_MODEL, "nf4", torch.float32, on_gpu=False)
    if adapter is not None:
        base = trainer.PeftModel.from_pretrained(base, str(adapter))
    with torch.no_grad():
        return base(input_ids=torch.tensor([[1, 5, 9, 40, 80]])).logits


def test_a_loaded_adapter_is_the_saved_one(trained, tiny, chat):
    # Defect 1: an adapter that is silently not applied.
    folder = trained["folder"]
    plain, first = logits(None), logits(folder / "M1")
    assert (plain - first).abs().max() > 1e-3
    job = make_job(folder, tiny, chat, "dpo", adapter_in=folder / "M1", name="again")
    model = backends.load_model(BY_TRANSFORMERS, job, torch.float32)
    backends.restore_adapter(model, job.adapter_in)
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([[1, 5, 9, 40, 80]])).logits, first)
    saved = weights(trained, "M1")
    for name, weight in trainer.trainable_weights(model).items():
        assert torch.equal(weight, saved[name.replace(".default", "")])


def test_an_adapter_with_other_keys_is_refused(trained, tmp_path, tiny, chat, work):
    source = trained["folder"] / "M0"
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    save_file(
        {f"other.{key}": value for key, value in weights(trained, "M0").items()},
        renamed / "adapter_model.safetensors",
    )
    with pytest.raises(TrainingError, match="does not fit"):
        work(make_job(tmp_path, tiny, chat, "dpo", adapter_in=renamed))


def test_the_model_that_was_asked_for_is_the_one_that_is_loaded(
    tmp_path, tiny, chat, trained, work
):
    # Defect 2: a hard-coded model.
    job = make_job(tmp_path, tiny, chat, "sft")
    missing = job.model_copy(update={"model_dir": tmp_path / "unique-name"})
    with pytest.raises(TrainingError, match="unique-name"):
        work(missing)
    adapter = json.loads((trained["folder"] / "M2" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(TINY_MODEL)


def test_a_failing_child_leaves_its_last_words_and_no_adapter(tmp_path, tiny, chat, work):
    job = make_job(tmp_path, tiny, chat, "sft", learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"train\.log"):
        work(job)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_missing_rows_are_refused(tmp_path, tiny, chat, work):
    job = make_job(tmp_path, tiny, chat, "sft")
    with pytest.raises(TrainingError, match="24 rows of 25"):
        work(job.model_copy(update={"row_count": 25}))


@pytest.fixture
def dpo(tmp_path, tiny, chat, trained) -> Callable[[], dict[str, float]]:
    """One DPO from M1, in this process, so that its parts can be spoilt."""
    job = make_job(
        tmp_path, tiny, chat, "dpo", adapter_in=trained["folder"] / "M1", name="spoilt", epochs=1
    )
    return lambda: trainer.train(job, lambda said: None, BY_TRANSFORMERS)


def spoil_trainer(monkeypatch, spoil: Callable) -> None:
    make = trainer.make_trainer

    def spoilt(*arguments):
        trainer = make(*arguments)
        spoil(trainer)
        return trainer

    monkeypatch.setattr(trainer, "make_trainer", spoilt)


def test_trainer_that_dropped_a_row_is_refused(dpo, monkeypatch):
    def drop_one(trainer):
        trainer.train_dataset = trainer.train_dataset.select(range(23))

    spoil_trainer(monkeypatch, drop_one)
    with pytest.raises(TrainingError, match="the trainer holds 23 rows of 24"):
        dpo()


@pytest.mark.slow
def test_rows_never_reached_are_not_counted(dpo, monkeypatch):
    assert dpo().rows == 24

    def stop_early(trainer):
        trainer.args.max_steps = 2

    spoil_trainer(monkeypatch, stop_early)
    assert dpo().rows == 16


def test_reference_that_is_another_model_is_refused(dpo, monkeypatch, trained):
    restore = backends.restore_adapter
    monkeypatch.setattr(
        backends,
        "restore_adapter",
        lambda model, adapter_in: restore(model, trained["folder"] / "M0"),
    )
    with pytest.raises(TrainingError, match=r"the reference is not M\(t-1\)"):
        dpo()


def test_trainer_without_a_reference_is_refused(dpo, monkeypatch):
    spoil_trainer(monkeypatch, lambda trainer: trainer.model.delete_adapter("ref"))
    with pytest.raises(TrainingError, match="its reference would be the base"):
        dpo()


def test_arrange_rows_sorts_batches_and_keeps_epochs_complete():
    rows = [
        {"prompt_ids": [index] * 3, "completion_ids": [0] * (index * 7 % 10)} for index in range(10)
    ]
    order = row_lists.arrange_rows(rows, epochs=2, batch=4, seed=3)
    names = [row["prompt_ids"][0] for row in order]
    lengths = [row_lists.row_length(row) for row in order]
    assert sorted(names) == sorted(list(range(10)) * 2)
    assert all(
        lengths[start : start + 4] == sorted(lengths[start : start + 4])
        for start in range(0, 20, 4)
    )
    assert (
        order
        == row_lists.arrange_rows(rows, 2, 4, seed=3)
        != row_lists.arrange_rows(rows, 2, 4, seed=4)
    )
    assert set(names[:8]) != set(names[8:16]), "epochs are shuffled apart"
    assert len(row_lists.arrange_rows(rows, 0.5, 4, 0)) == 5


def test_hostile_text_is_plain_and_long_rows_are_counted(chat):
    prompt = Prompt("p", 1, "generated", 0, "Sort <|eot_id|> the letters")
    good, bad = (
        Response(name, 1, "M0", "p", 0, text, "stop", 3)
        for name, text in (("g", "a<|eot_id|>b"), ("b", "x " * 300))
    )
    pair = ResponsePair("rp", 1, "p", "g", "b", 4.0, 1.0, 3, 600, 0.0)
    better, worse = (
        Judgment(name, 1, "M0", "g", 0, text, "stop", 3, 1.0, None)
        for name, text in (("jg", "fine\nScore: 3"), ("jb", "no\nScore: 1"))
    )
    judged = JudgmentPair("jp", 1, "g", "jg", "jb", 1.0, -1.0, 9, 9)
    texts = PairTexts({"p": prompt}, {"g": good, "b": bad}, {"jg": better, "jb": worse}, "compact")
    pairs = [texts.read_response_pair(pair), texts.read_judgment_pair(judged)]
    rows = row_lists.build_rows(pairs, chat, 250)
    (row,) = rows.rows
    assert rows.drops == {"longer than max_length": 1}
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == chat.end_of_turn
    assert row["chosen_ids"].count(chat.end_of_turn) == 1
    assert row["prompt_ids"].count(chat.end_of_turn) == 1
    assert chat.tokenizer.decode(list(row["chosen_ids"])) == "fine\nScore: 3"


@pytest.mark.slow
def test_llama_cpp_runs_the_model_that_was_trained(trained, chat, tmp_path):
    """The shipped base in NF4 and an adapter of three trainings: PEFT's logits and llama.cpp's."""
    model = Model(base="tiny", templates="compact", quantisation="nf4", gguf="f32")
    base = tmp_path / "base" / "base.gguf"
    texts = ["Sort the letters c a b.", "Score: 5 <|eot_id|> ünïcode"]
    probes = [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]
    with open_runtime() as runtime:
        runtime.export_base(TINY_MODEL, base, model)
        measured = runtime.export_adapter(
            TINY_MODEL, trained["folder"] / "M2", base, tmp_path / "M2.gguf", probes, model
        )
    print(f"\nPEFT against llama.cpp: {measured}")
    assert measured.difference < 1e-3
    assert measured.change > 0.1
    assert measured.agreement == 1.0


def test_without_a_row_the_adapter_is_fresh_and_changes_nothing(tmp_path, tiny, chat, work):
    job = make_job(tmp_path, tiny, chat, "sft", name="bare")
    job = job.model_copy(update={"row_count": 0})
    Path(job.rows).write_text("")
    facts, logged = work(job)
    assert (facts.rows, facts.moved_share, logged) == (0, 0.0, [])
    assert torch.equal(logits(tmp_path / "bare"), logits(None))


@pytest.mark.slow
def test_precomputed_reference_trains_the_same_model(tmp_path, tiny, chat, trained, work):
    """Its numbers come from other micro-batches: equal up to float32's rounding."""
    runs = {}
    for early in (False, True):
        job = make_job(
            tmp_path,
            tiny,
            chat,
            "dpo",
            adapter_in=trained["folder"] / "M0",
            name=f"early-{early}",
            micro_batch=4,
            precompute_reference=early,
        )
        facts, logged = work(job)
        assert abs(facts.first_margin) < 1e-4
        runs[early] = (
            load_file(tmp_path / f"early-{early}" / "adapter_model.safetensors"),
            [one["loss"] for one in logged],
        )
    assert runs[True][1] == pytest.approx(runs[False][1], abs=1e-3)
    for name, weight in runs[False][0].items():
        assert torch.allclose(runs[True][0][name], weight, atol=2e-3), name


@pytest.mark.slow
def test_precomputed_reference_gives_the_same_losses_in_bfloat16(
    tmp_path, tiny, chat, trained, monkeypatch
):
    """As on a GPU: without the autocast of training, the first margin would not be 0."""
    monkeypatch.setattr(trainer, "_compute_dtype", lambda: torch.bfloat16)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for early, logged in losses.items():

        def report(said, logged=logged):
            if "values" in said:
                logged.append(said["values"]["loss"])

        job = make_job(
            tmp_path,
            tiny,
            chat,
            "dpo",
            adapter_in=trained["folder"] / "M1",
            name=f"early-{early}",
            precompute_reference=early,
            epochs=2,
        )
        assert trainer.train(job, report, BY_TRANSFORMERS).first_margin == 0.0
    assert losses[True] == losses[False]
    assert len(losses[True]) == 6


def test_private_parts_of_trl_are_as_read():
    """On an upgrade: read `trainer` against the new sources, then change READ_VERSIONS."""
    for name, known in trainer.READ_VERSIONS.items():
        assert version(name) == known, f"{name} was upgraded: check trainer.py"
    for kind in (TokenDPOTrainer.__base__, TokenSFTTrainer.__base__):
        assert callable(kind._prepare_dataset)
        assert callable(kind._prepare_inputs)
        source = inspect.getsource(kind)
        assert "self._metrics[mode]" in source
    assert "ref_chosen_logps" in inspect.getsource(TokenDPOTrainer.__base__)
    assert "self.current_gradient_accumulation_steps" in inspect.getsource(Trainer.training_step)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_job_crosses_the_process_border_unchanged(tmp_path, tiny, chat, method):
    job = make_job(tmp_path, tiny, chat, method)
    again = Job.model_validate(json.loads(job.model_dump_json()))
    assert again == job
    assert type(again.settings) is type(job.settings)
    assert again.digest() == job.digest()
    other = tiny.dpo if method == "sft" else tiny.sft
    with pytest.raises(ValidationError, match="as the method needs"):
        Job(**{**vars(job), "settings": other})


def test_a_digest_is_that_of_checkpoints_written_before(tmp_path, tiny, chat):
    """By hand: method, quantization, rows, no adapter, seed, settings less micro_batch, LoRA."""
    job = make_job(tmp_path, tiny, chat, "sft")
    settings = {
        "learning_rate": tiny.sft.learning_rate,
        "epochs": 4.0,
        "batch": 8,
        "max_length": tiny.sft.max_length,
        "warmup": tiny.sft.warmup,
    }
    lora = {"rank": tiny.lora.rank, "alpha": tiny.lora.alpha, "dropout": tiny.lora.dropout}
    rows = hashlib.sha256(job.rows.read_bytes()).hexdigest()
    known = json.dumps(["sft", "nf4", rows, None, 0, settings, lora], sort_keys=True)
    assert job.digest() == hashlib.sha256(known.encode()).hexdigest()
    assert job.model_copy(update={"settings": tiny.sft}).digest() != job.digest()
    several = job.model_copy(update={"processes": 2, "devices": "0,1"})
    assert several.digest() == job.digest(), "a checkpoint is resumed by any number of processes"


def test_a_result_becomes_the_metrics_of_a_run():
    result = TrainingResult(steps=3, rows=2, moved_share=1.0, first_margin=0.0, ended_early=False)
    assert result.metrics() == {
        "training_steps": 3.0,
        "training_rows": 2.0,
        "training_moved_share": 1.0,
        "training_first_margin": 0.0,
        "training_ended_early": 0.0,
    }
