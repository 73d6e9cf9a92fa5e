"""The tab in which a run is planned, begun, watched, stopped and gone on with.

Knows: gradio's parts, what happens at a click. Does not know: stages. A run is a process of its own (`jobs`): this tab only reads
its folder, so that every browser sees the same, and closing them all changes nothing.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from selfreward_lite import config
from selfreward_lite.app import jobs
from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.jobs import RunRequest
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import NEWS, OWN, QUIET, TICK, Shell, errors_as_toasts, table
from selfreward_lite.data.records import ModelId
from selfreward_lite.report import status
from selfreward_lite.report.status import View
from selfreward_lite.run.plan import Estimate, estimate
from selfreward_lite.system.errors import SelfRewardError
from selfreward_lite.system.files import MARGIN, format_bytes

ABOUT = {
    "tiny": "a model of a million parameters in a world where every answer can be scored exactly; no download, any computer",
    "small": "Llama-3.2-3B on 10 to 12 GB",
    "t4": "Llama-3-8B on a free T4: a short run that shows every stage",
    "overnight": "Llama-3-8B on one 24 GB card: a seed night, then an iteration a night",
    "paper": "Meta-Rewarding as it is printed: 24 GB and weeks",
}
STATES = {
    "new": "not begun yet",
    "beginning": "is beginning",
    "running": "is running",
    "finished": "is finished",
    "refused": "was stopped by a gate",
    "stopped": "is stopped; what was done is kept",
}
NO_RUN = (
    "**No run is chosen.** Begin one on the left: the tiny one needs no download and takes minutes."
)
TINY_TOOK = "took 3 minutes on two CPU cores (the command of the README)"
COLUMNS = ["model", "stage", "done", "seconds", "a second", "left out, and why"]


def plan(library: RunLibrary, wanted: RunRequest) -> str:
    """Return in words what a run would need, or what is wrong with what is asked for."""
    try:
        settings = config.load(wanted.preset or "tiny", wanted.overrides())
        found = estimate(settings, None, library.runs_dir)
    except SelfRewardError as error:
        return f"⚠ {escape_markdown(str(error))}"
    lines = [
        f"**{settings.preset}**: {ABOUT.get(settings.preset, '')}.",
        f"- {_hours(settings, found)}",
        f"- {_memory(found)}",
    ]
    needs, room = sum(found.disk.values()), f"{format_bytes(found.free)} are free"
    lines.append(
        f"- disk: {format_bytes(needs)}; {room}"
        + (" ⚠ **too little**" if needs * MARGIN > found.free else "")
    )
    lines.append(f"- download: {format_bytes(found.download) if found.download else 'nothing'}")
    return "\n".join(lines)


def _hours(settings: config.Settings, found: Estimate) -> str:
    expected = found.prediction
    if settings.preset == "tiny" and not expected.seconds:
        return f"time: {TINY_TOOK}"
    if not expected.seconds:
        return (
            f"time: nothing is known of {expected.card}"
            if expected.card
            else "time: nothing is said of it, since there is no card"
        )
    seed, one = (expected.hours(iteration) or 0.0 for iteration in (0, 1))
    each = f"{one:.1f} for an iteration, {settings.iterations} of them"
    return f"time: {seed:.1f} hours for the seed stage, {each} ({expected.source})"


def _memory(found: Estimate) -> str:
    peak = f"card memory: {format_bytes(found.most)} at its peak (estimate)"
    if found.room is None:
        return f"{peak}; there is no card here: training and judging run on the CPU"
    return f"{peak}; {format_bytes(found.room)} are free on {found.prediction.card}" + (
        " ⚠ **too little**" if found.most > found.room else ""
    )


def headline(view: View) -> str:
    """Return in a few words how a run stands, and what to do next."""
    newest = "the base" if view.newest is None else ModelId(view.newest).name
    said = f"**{escape_markdown(view.name)}** {STATES[view.state]}"
    if view.state == "finished":
        return f"{said}: {newest} is its newest model. Talk to it, compare it with M0, or go on for another iteration."
    if view.state == "refused":
        reasons = "".join(
            f"\n- {gate}: {escape_markdown(reason)}" for gate, reason in view.refused.items()
        )
        advice = (
            "accept it all the same, or go past the gates"
            if view.may_accept
            else "go past the gates"
        )
        return (
            f"{said}: {view.candidate} is not good enough, and {newest} stays the newest.{reasons}\n\nLook at its pairs and "
            f"scores (Explore, Progress). Then {advice}, or begin a new run with other settings."
        )
    if view.state in ("running", "beginning"):
        return f"{said} (process {view.process}): {view.candidate} is being made, of M{view.iterations}."
    return f"{said}." + (
        " Go on with it: it resumes where it was." if view.state == "stopped" else ""
    )


def progress(view: View) -> str:
    """Return, as HTML of our own words and numbers, a bar of the stage that is under way; nothing when there is none."""
    now = view.now
    if now is None or view.state not in ("running", "stopped", "refused"):
        return ""
    left = (
        ""
        if now.left is None or view.state != "running"
        else f", about {_span(now.left)} left of this stage"
    )
    rate = "" if now.rate is None else f", {now.rate:,.1f} a second"
    said = html.escape(
        f"{now.model} {now.name.replace('_', ' ')}: {now.done:,} of {now.total:,}{rate}{left}"
    )
    return f'<label class="stage">{said}<progress max="{max(1, now.total)}" value="{now.done}"></progress></label>'


def stages(view: View) -> list[list[Any]]:
    """Return a row a stage, the newest first."""
    return [
        [
            stage.model,
            stage.name.replace("_", " "),
            f"{stage.done:,} of {stage.total:,}",
            round(stage.seconds, 1),
            "" if stage.rate is None else f"{stage.rate:,.1f}",
            ", ".join(f"{count:,} {reason}" for reason, count in stage.drops.items()),
        ]
        for stage in reversed(view.stages)
    ]


def _span(seconds: float) -> str:
    """A time as people say it.

    >>> _span(42), _span(600), _span(7200)
    ('42 s', '10 min', '2.0 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


# -- what happens at a click ------------------------------------------------------------------------------------------------


def wanted_of(
    name: str,
    preset: str,
    iterations: float | None,
    seed: float | None,
    hours: float | None,
    more: str,
) -> RunRequest:
    """Return what the form asks for; an empty field leaves the preset's value."""
    return RunRequest(
        name.strip() or preset,
        preset,
        None if iterations is None else int(iterations),
        None if seed is None else int(seed),
        hours or None,
        tuple(line.strip() for line in (more or "").splitlines() if line.strip()),
    )


def begin(library: RunLibrary, wanted: RunRequest) -> str:
    """Begin a run, or go on with it; returns its name. Raises what `jobs.begin` raises."""
    jobs.begin(library.runs_dir, wanted, library.started)
    return wanted.name


def go_on(
    library: RunLibrary, run: str, *, one_more: bool = False, past_gates: bool = False
) -> None:
    """Go on with a run as it was begun: what is missing of it, or one iteration more."""
    more = status.view(library.folder(run)).iterations + 1 if one_more else None
    jobs.begin(
        library.runs_dir, RunRequest(run, iterations=more, past_gates=past_gates), library.started
    )


def accept(library: RunLibrary, run: str) -> None:
    """Promote the candidate that a gate refused."""
    jobs.accept(library.runs_dir, library.folder(run).name)


# -- how it is laid out -----------------------------------------------------------------------------------------------------


def tab(library: RunLibrary, shell: Shell, first: gr.Button) -> None:
    """Lay the tab out. `first` is the button, above the tabs, that begins the tiny run where there is none."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("### Begin a run")
            preset = gr.Dropdown(list(ABOUT), value="tiny", label="Preset")
            name = gr.Textbox("", label="Name", placeholder="as the preset", max_lines=1)
            with gr.Accordion("Options", open=False):
                iterations = gr.Number(
                    None, label="Iterations", info="empty: as the preset", precision=0, minimum=0
                )
                hours = gr.Number(
                    None, label="Hours", info="fewer prompts, so that it is done in time", minimum=0
                )
                seed = gr.Number(None, label="Seed", precision=0, minimum=0)
                more = gr.Textbox("", label="Settings", info="one a line, as dpo.beta=0.2", lines=2)
            needs = gr.Markdown("", elem_id="plan", container=True)
            start = gr.Button("Start", variant="primary")
        with gr.Column(scale=3, min_width=320):
            said = gr.Markdown(NO_RUN, elem_id="state")
            bar = gr.HTML("", elem_id="bar")
            with gr.Row():
                buttons = [
                    gr.Button(words, visible=False, size="sm", min_width=100)
                    for words in (
                        "Stop",
                        "Go on",
                        "One more iteration",
                        "Accept anyway",
                        "Go past the gates",
                    )
                ]
            log = gr.Textbox(
                label="The last it said",
                lines=8,
                max_lines=8,
                interactive=False,
                visible=False,
                elem_id="log",
            )
    rows = table(
        COLUMNS,
        "8 18 16 10 11 37",
        "Stages, the newest first",
        height=420,
        visible=False,
        elem_id="stages",
    )
    form, looks = [name, preset, iterations, seed, hours, more], [said, bar, *buttons, rows, log]
    needs.value = plan(library, RunRequest("tiny", "tiny"))
    for one in form:
        one.change(lambda *fields: plan(library, wanted_of(*fields)), form, needs, **QUIET)
    _wire(library, shell, form, looks, (start, first))


def _wire(
    library: RunLibrary,
    shell: Shell,
    form: list[Any],
    looks: list[Any],
    starts: tuple[gr.Button, gr.Button],
) -> None:
    """Say what every click does."""

    def seen(run: str | None, known: Any) -> tuple[Any, ...]:
        now = _now(library, run)
        return (known, *(gr.skip() for _ in looks)) if now == known else (now, *look(library, run))

    def tried(work: Callable[[], Any], run: str | None) -> tuple[Any, ...]:
        """Do something to a run, say it if it cannot be, and show how it stands."""
        with errors_as_toasts():
            work()
        return look(library, run)

    def started(*fields: Any) -> tuple[Any, ...]:
        wanted = wanted_of(*fields)
        shown = tried(lambda: begin(library, wanted), wanted.name)
        return gr.update(choices=[*library.runs(), TINY], value=wanted.name), *shown

    outputs, buttons = [shell.run, *looks], looks[2:7]
    starts[0].click(started, form, outputs, **OWN)
    starts[1].click(lambda: started("tiny", "tiny", None, None, None, ""), None, outputs, **OWN)
    acts = (
        lambda run: jobs.stop(library.folder(run)),
        lambda run: go_on(library, run),
        lambda run: go_on(library, run, one_more=True),
        lambda run: accept(library, run),
        lambda run: go_on(library, run, past_gates=True),
    )
    for button, act in zip(buttons, acts, strict=True):
        button.click(lambda run, act=act: tried(lambda: act(run), run), shell.run, looks, **OWN)
    known = gr.State(None)
    shell.run.change(seen, [shell.run, known], [known, *looks], **NEWS)
    shell.timer.tick(seen, [shell.run, known], [known, *looks], **TICK)


def _now(library: RunLibrary, run: str | None) -> Any:
    """What is told about a run, to be compared with what was told before."""
    try:
        folder = library.folder(run or TINY)
        return status.view(folder), list(jobs.last_words(folder))
    except SelfRewardError as error:
        return str(error)


def look(library: RunLibrary, run: str | None) -> tuple[Any, ...]:
    """Everything on the tab about a run as it stands now."""
    if not run or run == TINY:
        return (
            NO_RUN,
            "",
            *(gr.update(visible=False) for _ in range(5)),
            gr.update(visible=False),
            gr.update(visible=False),
        )
    try:
        view = status.view(library.folder(run))
    except SelfRewardError as error:
        return (
            f"⚠ {escape_markdown(str(error))}",
            "",
            *(gr.update(visible=False) for _ in range(5)),
            gr.skip(),
            gr.skip(),
        )
    words = jobs.last_words(library.folder(run))
    visible = (
        view.state in ("running", "beginning"),
        view.state == "stopped",
        view.state == "finished",
        view.may_accept,
        view.state == "refused",
    )
    return (
        headline(view),
        progress(view),
        *(gr.update(visible=one) for one in visible),
        gr.update(value=stages(view), visible=bool(view.stages)),
        gr.update(value="\n".join(words), visible=bool(words)),
    )
