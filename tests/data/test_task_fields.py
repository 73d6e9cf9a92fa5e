"""Parts of a task under names, and in values, that look like labels: none is dropped in silence."""

import json

import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompt, extract_prompts
from selfreward_lite.data.rows import BadRow
from selfreward_lite.system.errors import DataError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "French") for name in ("tgt_lang", "output_language", "to_lang", "replyLanguage")),
        *((name, [3, 5]) for name in ("numbers", "nums", "rows", "matrix")),
        ("rows", "[[1990, 3], [1991, 4]]"),
        ("instructions", "In French."),
        ("definition", "Sort."),
        ("role", "You are a pirate."),
        ("role", "system"),
    ],
)
def test_a_part_of_the_task_is_refused_by_its_name(name, value):
    with pytest.raises(BadRow, match=r"belongs to the task .*prompts\.ignore="):
        extract_prompt({"prompt": "Do it.", name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "English") for name in ("lang", "src_lang", "language", "source_language")),
        *((name, 7) for name in ("output_length", "response_length", "format")),
        *((name, "dry") for name in ("style", "category", "topic", "length", "domain")),
        *((name, [3, 5]) for name in ("input_ids", "attention_mask", "embedding", "logprobs")),
        *(("rows", 7), ("num_rows", 7), ("role", "User"), ("role", "prompter")),
        ("source", ["lmsys-chat-1m", "flan"]),
    ],
)
def test_a_label_or_a_figure_does_no_harm(name, value):
    assert extract_prompt({"prompt": "Do it.", name: value}) == "Do it."


def test_a_list_of_sources_with_texts_belongs_to_the_task():
    with pytest.raises(BadRow, match="field 'source' belongs to the task"):
        extract_prompt({"prompt": "Do it.", "source": ["flan", "There are three lamps here."]})


def test_a_sentence_is_no_label_even_if_all_rows_have_it(tmp_path):
    rows = [{"text": f"Ann bought loaf {n}.", "task": "Sum it up in a line."} for n in range(9)]
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'task' belongs to the task"):
        extract_prompts(read_rows(write_rows(tmp_path / "a.jsonl", rows), skip_bad=False))
    rows = [row | {"task": "closed book question answering"} for row in rows]
    rows[0]["task"] = rows[1]["task"] = "Something about a book?"  # PandaLM has such labels
    read = read_rows(write_rows(tmp_path / "b.jsonl", rows), skip_bad=False)
    assert len(extract_prompts(read)) == 9
    assert read.notes == [f"{tmp_path}/b.jsonl: fields that are not used: task"]


@pytest.mark.parametrize("data", ["Ann sold 3 in May, Bo 4.", {"May": "three", "June": "four"}])
def test_data_beside_a_prompt_are_refused_and_a_label_is_named(tmp_path, data):
    with pytest.raises(BadRow, match=r"field 'data' says something else .*prompts\.ignore=data$"):
        extract_prompt({"instruction": "Sum it up.", "data": data})
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "Sum it up.", "data": "train"}])
    read = read_rows(path, skip_bad=False)
    assert extract_prompts(read) == ["Sum it up."]
    assert read.notes == [f"{path}: fields that are not used: data"]


def test_a_text_that_holds_the_prompt_is_the_whole_row_only_if_the_rest_is_there_too():
    long = "Please sum up what Ann and Bo did in the long year of the war, when bread was dear."
    with pytest.raises(BadRow, match="field 'text' says something else"):
        extract_prompt({"prompt": "Sum up", "text": long})
    row = {"question": "Why?", "answer": long, "text": f"Question: Why?\nAnswer: {long}"}
    assert extract_prompt(row) == "Why?"
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": long}]
    written = f"<|user|>\nWhy?</s>\n<|assistant|>\n{long}</s>"
    assert extract_prompt({"messages": chat, "text": written}) == "Why?"


@pytest.mark.parametrize("shortened", ["Below is …", "Below is ..."])
def test_alpacas_text_may_be_shortened_to_its_first_words(shortened):
    row = {"instruction": "Sort these words by length.", "input": "cat, ox", "output": "x"}
    asked = extract_prompt(row)
    assert extract_prompt({**row, "text": shortened}) == asked
    with pytest.raises(BadRow, match="field 'text' says something else"):
        extract_prompt({**row, "text": "Below is a rule: write in Latin."})


@pytest.mark.parametrize("nothing", ["nan", "None", "null", "N/A", "<NA>"])
def test_what_programs_write_for_nothing_is_no_prompt(nothing):
    with pytest.raises(BadRow, match=f"field 'prompt' holds only '{nothing}'"):
        extract_prompt({"prompt": nothing})


def test_a_whole_number_is_material_as_in_a_table():
    assert extract_prompt({"instruction": "Is it prime?", "input": 7}) == "Is it prime?\n\n7"
    with pytest.raises(BadRow, match="field 'instances' is not a list of objects"):
        extract_prompt({"instruction": "Is it prime?", "instances": 7})
    for odd in (True, 7.5):
        with pytest.raises(BadRow, match="field 'input' is not text"):
            extract_prompt({"instruction": "Is it prime?", "input": odd})


def test_fields_to_ignore_that_are_not_there_are_named(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "Why?", "Hint": "In the air."}])
    read = read_rows(path, skip_bad=False)
    assert extract_prompts(read, ignore=["hint", "hnt"]) == ["Why?"]
    assert f"{path}: no row has the fields hnt to ignore" in read.notes


# Names that hold a word for an answer, and are a part of the task all the same.
ABOUT_ANSWERS = (
    *("reference_text", "reference_document", "Reference Passage", "gold_passage", "gold_context"),
    *("student_answer", "studentAnswers", "candidate_answer", "user_reply", "my_answer"),
    *("customer_feedback", "tool_output", "response_to_edit", "answer_to_grade", "draft_answer"),
    *("summary_to_improve", "answers_for_grading", "answer_for_review", "answer_prefix"),
    *("answer_draft", "partial_solution", "buggy_solution", "answer_context", "solution_hints"),
    *(
        "output_constraints",
        "response_guidelines",
        "example_output",
        "output_example",
        "test_input",
    ),
    *("gold_passage_1", "answer_passage_text", "reference_document_list", "toxic_text"),
    *("target_audience", "output_style", "response_tone", "target_words", "answer_instruction"),
    *("background_info", "table_header", "instructions_for_model", "language_instructions"),
    *("audience", "format", "genre", "mood", "tone", "assistant_role", "act_as", "Answer in"),
    *("output_length", "expected_length", "target_age", "respond_as", "must_include", "age_group"),
)
# Labels, though they hold such a word and one for material.
ANSWERS = (
    *("reference_answer", "reference_answers", "gold_answer", "expected_output", "ideal_response"),
    *("ground_truth_answer", "correct_answers", "final_answer", "answer_a", "answer_text"),
    *("response_content", "reasoning_content", "generated_text", "target_text", "target_sequence"),
    *("label_text", "solution_code", "canonical_solution", "reference", "reference_summary"),
    *("human_answers", "chatgpt_answers", "model_output", "chosen_messages", "original_response"),
    *("raw_generation_responses", "labelling_prompt", "extra_info", "meta_info", "test_info"),
    *(
        "article_summary",
        "document_id",
        "code_output",
        "user_rating",
        "review_score",
        "in_reply_to",
    ),
    *("answer_to_question", "response_to_prompt", "list_of_answers", "type_of_answer"),
    *("answer_list", "language_code", "deepseek_reasoning", "model_name", "feedback", "test_code"),
)


@pytest.mark.parametrize("name", ABOUT_ANSWERS)
def test_material_and_answers_that_a_prompt_is_about_are_refused(name):
    with pytest.raises(BadRow, match=r"belongs to the task .*prompts\.ignore="):
        extract_prompt({"prompt": "Do it.", name: "In May"})


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_to_the_prompt_is_only_named(tmp_path, name):
    rows = [{"prompt": f"Say {n}.", name: f"It is {n} and no more."} for n in range(9)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    read = read_rows(path, skip_bad=False)
    assert len(extract_prompts(read)) == 9
    assert read.notes == [f"{path}: fields that are not used: {name}"]


@pytest.mark.parametrize(
    "name", ["notes_for_model", "reference_material", "user_info", "toxic_post"]
)
def test_of_names_that_may_be_either_the_values_tell(tmp_path, name):
    rows = [{"prompt": f"Say {n}.", name: "by hand"} for n in range(9)]
    read = read_rows(write_rows(tmp_path / "a.jsonl", rows), skip_bad=False)
    assert len(extract_prompts(read)) == 9
    rows = [row | {name: f"There are {n} lamps here."} for n, row in enumerate(rows)]
    with pytest.raises(DataError, match=f"field '{name}' belongs to the task"):
        extract_prompts(read_rows(write_rows(tmp_path / "a.jsonl", rows), skip_bad=False))


@pytest.mark.parametrize("name", ["max_words", "desired_length", "target_word_count", "min_lines"])
def test_a_number_that_says_how_long_an_answer_should_be_is_refused(name):
    with pytest.raises(BadRow, match=f"field '{name}' belongs to the task"):
        extract_prompt({"prompt": "Do it.", name: 50})


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (["Notes, other"], "notes_other"),
        ([""], "unnamed"),
        (["Time limit (sec)"], "time_limit_sec"),
        (["Remark; a=b", "Hint: one"], "remark_a_b,hint_one"),
    ],
)
def test_the_way_out_works_as_it_is_printed(tmp_path, names, printed):
    rows = [
        {"prompt": f"Say {n}.", names[n % len(names)]: f"There are {n} lamps here."}
        for n in range(4)
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"prompts\.ignore={printed};"):
        extract_prompts(read_rows(path, skip_bad=False))
    found = extract_prompts(read_rows(path, skip_bad=False), ignore=printed.split(","))
    assert found == [f"Say {n}." for n in range(4)]


def test_words_for_nothing_in_a_task_are_counted_and_named(tmp_path):
    words = ["None", "None", "N/A", "[]", "<noinput>", "", "b a"]
    rows = [{"instruction": f"Say {n}.", "input": word} for n, word in enumerate(words)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": "Why?", "context": "nan"}])
    read = read_rows(path, skip_bad=False)
    assert extract_prompts(read)[:2] == ["Say 0.", "Say 1."]
    assert read.notes == [
        f"{path}: taken for empty: 'None' in 'input' (rows: 2), 'N/A' in 'input' (rows: 1), '[]' "
        "in 'input' (rows: 1), 'nan' in 'context' (rows: 1); where it is meant, put it in quotes "
        "or write it into the prompt"
    ]
