"""Addresses where the hub's owner/name is expected: refused, with what to write."""

import pytest

from selfreward_lite.data.hub import parse_repository
from selfreward_lite.system.errors import UserError


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://huggingface.co/datasets/tatsu-lab/alpaca", ": write tatsu-lab/alpaca"),
        ("http://hf.co/a/b/", ": write a/b"),
        ("https://huggingface.co/a/b/tree/v1.0", ": write a/b@v1.0"),
        ("https://huggingface.co/a/b/blob/main/c.Q4_K_M.gguf?x=1", ": write a/b/c.Q4_K_M.gguf"),
        ("https://huggingface.co/a/b/resolve/9f2/c.gguf", ": write a/b/c.gguf@9f2"),
        ("https://me:secret@there.org/x.csv", "https://…@there.org/x.csv: an address, of which"),
        ("HTTPS://huggingface.co/datasets", "download it, and give the file, or owner/name"),
    ],
)
def test_an_address_is_refused_with_what_to_write(address, says):
    with pytest.raises(UserError) as caught:
        parse_repository(address)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert says[0] != ":" or str(caught.value).endswith(says)
