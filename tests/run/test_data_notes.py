"""What a run says of the user's own files: what was guessed, read and left out."""

import json

import scripted_run

from selfreward_lite.data.records import Prompt
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny.ranked import generate_ranked_rows
from selfreward_lite.run.ask import Progress


def test_a_run_says_what_it_read_of_the_users_files(tmp_path):
    ranked = tmp_path / "ranked"
    (ranked / "more").mkdir(parents=True)
    rows = [json.dumps(row) + "\n" for row in generate_ranked_rows(60)]
    (ranked / "a.jsonl").write_text("".join(rows[:120]))
    (ranked / "more" / "b.jsonl").write_text("".join(rows[120:]))
    (ranked / "README.md").write_text("mine")
    asks = tmp_path / "asks.csv"
    texts = [f"Sort the letters {letter} é a." for letter in "cdefghij"]
    asks.write_bytes(
        f"prompt;topic\n{''.join(f'{one};x' + chr(10) for one in texts)}".encode("cp1252")
    )
    said: list[Progress] = []
    scripted_run.run(
        tmp_path / "run",
        watch=said.append,
        iterations="0",
        **{"seed_stage.ranked": str(ranked), "prompts.file": str(asks)},
    )
    assert [(at.stage, at.message) for at in said if str(tmp_path) in at.message] == [
        (
            "ranked",
            f"{ranked}: read a.jsonl (rows: 120), more/b.jsonl (rows: {len(rows) - 120}); left "
            "out: README.md; to take one of them, give its path",
        ),
        (
            "prompts_file",
            f"{asks}: not UTF-8, so it is read as Windows-1252 (cp1252); if its letters come out "
            "wrong, save it as UTF-8",
        ),
        ("prompts_file", f"{asks}: fields that are not used: topic"),
    ]
    with Store.read(tmp_path / "run") as store:
        assert [one.text for one in store.records(Prompt, origin="imported")] == texts
