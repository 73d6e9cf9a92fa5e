"""The tables of estimates in docs/your-gpu.md are what the plan says."""

from repository import generated_block

from selfreward_lite.bench import plan_table
from selfreward_lite.run import speed


def test_the_published_estimates_are_the_plans():
    assert generated_block("your-gpu.md", "preset-table") == plan_table.build_presets_table()
    assert generated_block("your-gpu.md", "night-table") == plan_table.build_night_table()


def test_a_gpu_that_is_too_small_has_no_hours():
    rows = {
        line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")]
        for line in plan_table.build_presets_table().splitlines()[2:]
    }
    gpus = list(speed.GPU_SPEEDS)
    assert rows["overnight"][5:][gpus.index("T4")] == "too small"
    assert " + " in rows["t4"][5:][gpus.index("T4")]
    assert set(rows) == {"overnight", "paper", "qwen3", "qwen3-small", "small", "t4"}


def test_minutes_add_up_to_the_hours_of_both_parts():
    night = plan_table.build_night_table().splitlines()[2:]
    (row,) = [
        line for line in plan_table.build_presets_table().splitlines() if "`overnight`" in line
    ]
    gpu = list(speed.GPU_SPEEDS).index(plan_table.NIGHT_GPU)
    hours = row.strip("|").split("|")[5 + gpu].split("+")
    last = float(night[-1].strip("|").split("|")[-1].split()[0])
    assert abs(last - sum(map(float, hours))) < 0.2
