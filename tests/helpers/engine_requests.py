"""Requests for scripted engines."""

from selfreward_lite.engine.api import Request, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=60)


def make_requests(count: int, samples: int = 3) -> list[Request]:
    """Requests named by number; the prompt is the name, the seeds are 10, 11, 12."""
    seeds = tuple(range(10, 10 + samples))
    return [Request(f"r{i}", tuple(str(i).encode()), seeds, SAMPLING, ()) for i in range(count)]
