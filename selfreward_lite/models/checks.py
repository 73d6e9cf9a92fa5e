"""Whether a base can be used at all: first its small files, then the headers of its weights."""

from collections.abc import Mapping
from pathlib import Path

from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.hf_folder import (
    STATE,
    ModelShape,
    TensorShape,
    check_names,
    check_shape,
    list_tensors,
    list_weight_files,
    open_safetensors,
    read_config,
)
from selfreward_lite.models.parity import CONVERSATIONS, make_conversation
from selfreward_lite.models.vocabulary import read_vocabulary
from selfreward_lite.system.errors import ConfigError


def check_files(model_dir: Path) -> ModelShape:
    """Check config.json, tokenizer and chat template, and return the shape; reads no weights.

    Raises ExportError or ConfigError, naming the file, for what is not supported.
    """
    shape = read_config(model_dir)
    read_vocabulary(model_dir, shape.vocab)
    chat = ChatFormat.load(model_dir)
    bos = chat.template.tokens.get("bos_token")
    for turns in CONVERSATIONS:
        messages = make_conversation(turns)
        text = chat.template.render(messages, ask=True)
        if bos and text.startswith(2 * bos):
            raise ConfigError(
                f"{model_dir}: the chat template begins with two {bos}; correct chat_template"
            )
        if text != chat.fill(messages):
            raise ConfigError(
                f"{model_dir}: the chat template changes the text of a message; use the template "
                "of a chat model"
            )
    return shape


def check_folder(model_dir: Path) -> None:
    """`check_files`, and that the files of weights hold every tensor in its shape."""
    shape = check_files(model_dir)
    found: dict[str, TensorShape] = {}
    for name in list_weight_files(model_dir):
        with open_safetensors(model_dir / name, "numpy") as file:
            names = file.keys()
            found |= {one: tuple(file.get_slice(one).get_shape()) for one in names}
    check_tensors(model_dir, shape, found)


def check_tensors(model_dir: Path, shape: ModelShape, found: Mapping[str, TensorShape]) -> None:
    """Check the names and shapes in the headers of a model's weights; raises as `check_folder`."""
    check_names(model_dir, shape, found)
    for tensor in list_tensors(shape):
        packed = f"{tensor.source}.{STATE}" in found
        check_shape(tensor, found[tensor.source], packed=packed)
