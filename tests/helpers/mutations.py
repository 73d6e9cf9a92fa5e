"""Inputs made from good ones by a few edits, as hypothesis draws and shrinks them."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import AnyStr

from hypothesis import strategies as st


def mutate(one: AnyStr, other: AnyStr, edits: Sequence[tuple[str, float, int, AnyStr]]) -> AnyStr:
    """A text or bytes with edits: kind, place as a share of its length, how much, what."""
    for kind, share, count, piece in edits:
        place = int(share * len(one))
        if kind == "cut":
            one = one[:place]
        elif kind == "drop":
            one = one[:place] + one[place + count :]
        elif kind == "put":
            one = one[:place] + piece + one[place:]
        elif kind == "set":
            one = one[:place] + piece + one[place + len(piece) :]
        elif kind == "repeat":
            one = one[:place] + one[place : place + 3] * count + one[place:]
        else:  # join
            one = one[:place] + other[int(share * len(other)) :]
    return one


def mutated(
    corpus: Sequence[AnyStr], pieces: st.SearchStrategy[AnyStr]
) -> st.SearchStrategy[AnyStr]:
    """Inputs of a corpus after up to six edits, which also put in `pieces`."""
    edit = st.tuples(
        st.sampled_from(["cut", "drop", "put", "put", "set", "set", "repeat", "join"]),
        st.floats(0, 1),
        st.integers(1, 40) | st.sampled_from([1000, 5000]),
        pieces,
    )
    one = st.sampled_from(corpus)
    return st.builds(mutate, one, one, st.lists(edit, max_size=6))


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block if it takes longer than any input should."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still not done after {seconds} s")

    before: Callable[..., object] | int | None = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
