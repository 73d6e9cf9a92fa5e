"""Errors as a user sees them."""

import pytest

from selfreward_lite.system.errors import SelfRewardError


def one_line(error: pytest.ExceptionInfo[SelfRewardError] | BaseException) -> str:
    """Return the text of an error, which must be one line."""
    text = str(getattr(error, "value", error))
    assert "\n" not in text
    return text
