"""The scheduler on a fake device: adapter switches, waiting times, batches, cells."""

import random
from collections import Counter

import numpy as np
import pytest

from selfreward_lite.engine.api import Bracket, Cancel, Closing, Probe, Request, Sampling
from selfreward_lite.engine.scheduler import Scheduler, probabilities
from selfreward_lite.system.errors import EngineError

VOCAB = 50
END = 49


class Device:
    """Draws tokens at random and records its calls."""

    def __init__(self, cells: int = 4096, rows: int = 64, says: int | None = None) -> None:
        self.cells, self.limit, self.rows, self.vocab = cells, cells, rows, VOCAB
        self.switches: list[str | None] = []
        self.batches: list[tuple[str | None, int, int]] = []
        self._says, self._rng = says, random.Random(0)

    def decode(self, rows, wanted):
        size = len(rows.tokens)
        self.batches.append((self.switches[-1] if self.switches else None, size, len(wanted)))
        return 0

    def make_sampler(self, sampling, seed):
        return seed

    def sample(self, samplers, rows):
        return [self._rng.randrange(40) if self._says is None else self._says for _ in samplers]

    def free_sampler(self, sampler): ...

    def row_logits(self, row):
        return np.arange(VOCAB, dtype=np.float32)

    def fork(self, source, target, length): ...

    def drop(self, sequence, start=0): ...

    def clear(self): ...

    def use_adapter(self, adapter):
        self.switches.append(adapter)

    def is_unchanged(self, adapter):
        return True

    def token_bytes(self, token):
        return b"score: " if token == 7 else b"."

    def take_errors(self):
        return "nothing"


def ask(
    key: str,
    adapter: str | None = None,
    samples: int = 1,
    new: int = 8,
    probe: Probe | None = None,
    closing: Closing | None = None,
) -> Request:
    prompt = tuple(random.Random(key).randrange(40) for _ in range(12))
    return Request(
        key,
        prompt,
        tuple(range(samples)),
        Sampling(temperature=1.0, top_p=1.0, max_tokens=new),
        (END,),
        adapter,
        probe,
        closing=closing,
    )


@pytest.mark.parametrize("parallel", [4, 16])
def test_requests_of_one_adapter_are_grouped(parallel):
    rng, device = random.Random(1), Device()
    requests = [ask(str(number), rng.choice(["a", "b", "c"])) for number in range(600)]
    done = list(Scheduler(device, parallel, 8).run(requests))
    assert Counter(one.key for one in done) == Counter(one.key for one in requests)
    turns = sum(before != after for before, after in zip(requests, requests[1:], strict=False))
    assert turns > 300, "in order, more than every other request would be a switch"
    assert len(device.switches) < turns / parallel, (
        "two batches are read ahead and sorted by adapter"
    )


def test_no_request_starves_behind_another_adapter():
    """With requests for `a` coming without end, `b` has its turn after a burst."""
    parallel, device = 4, Device()

    def feed():
        yield ask("first", "a")
        yield ask("waits", "b")
        for number in range(10_000):
            yield ask(str(number), "a")

    before = 0
    for done in Scheduler(device, parallel, 8).run(feed()):
        if done.key == "waits":
            break
        before += 1
    assert before <= 11 * parallel


def test_step_has_a_token_of_every_sample_and_prompts():
    device = Device(rows=32)
    scheduler = Scheduler(device, 8, 4)
    list(scheduler.run([ask(str(number), samples=4, new=20) for number in range(20)]))
    assert max(wanted for _, _, wanted in device.batches) == 8
    assert all(size <= 32 for _, size, _ in device.batches)
    assert scheduler.stats.busy_slot_steps / (scheduler.stats.busy_steps * 8) > 0.9


class Remembering(Device):
    """Knows the tokens of every sequence, and refuses a row that does not continue one."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.holds: dict[int, list[int]] = {}
        self.sampled: list[list[int]] = []

    def decode(self, rows, wanted):
        for token, position, sequence in zip(*rows, strict=True):
            held = self.holds.setdefault(sequence, [])
            assert position == len(held), (
                f"sequence {sequence} holds {len(held)} tokens and is given position {position}"
            )
            held.append(token)
        self.sampled.append([rows.sequences[row] for row in wanted])
        return super().decode(rows, wanted)

    def fork(self, source, target, length):
        assert not self.holds.get(target), "the target of a fork is empty"
        assert len(self.holds[source]) >= length
        self.holds[target] = self.holds[source][:length]

    def drop(self, sequence, start=0):
        del self.holds.setdefault(sequence, [])[start:]


def test_samples_stay_in_the_first_sequences():
    """With a cache per sequence, neighbors are computed in one go: the first are used, in order."""
    rng, device = random.Random(2), Remembering(rows=48)
    requests = [
        ask(str(number), samples=rng.randint(1, 5), new=rng.randint(1, 30)) for number in range(60)
    ]
    done = list(Scheduler(device, 8, 3).run(requests))
    assert len(done) == sum(len(request.seeds) for request in requests)
    assert all(sequences == list(range(len(sequences))) for sequences in device.sampled)
    together = {len(sequences) for sequences in device.sampled}
    assert max(together) == 8 and len(together) > 4, "at the end, fewer and fewer"


def test_the_expected_score_costs_no_step():
    steps = []
    for probe in (None, Probe((1, 2, 3), after="score:")):
        device = Device(says=7)
        done = list(
            Scheduler(device, 4, 4).run(
                [ask(str(number), samples=3, probe=probe) for number in range(9)]
            )
        )
        steps.append(device.batches)
        assert all((one.probe is None) == (probe is None or 7 not in probe.tokens) for one in done)
    assert steps[0] == steps[1]
    for after, probed in (("score:", True), ("something else:", False)):
        device = Device(says=7)
        (one,) = Scheduler(device, 4, 4).run([ask("one", new=3, probe=Probe((7, 8), after=after))])
        assert (one.probe is not None) == probed
        assert len(device.batches) == 1 + 3, "the prompt, and a step a token"


def test_request_that_cannot_fit_is_refused_and_others_continue():
    device = Device(cells=64)
    requests = [ask("small", new=8), ask("large", samples=2, new=64), ask("small too", new=8)]
    done = {(one.key, one.sample): one.finish for one in Scheduler(device, 4, 4).run(requests)}
    assert done == {
        ("small", 0): "length",
        ("large", 0): "refused",
        ("large", 1): "refused",
        ("small too", 0): "length",
    }
    with pytest.raises(EngineError, match=r"request odd: a token id is outside the model's 50"):
        list(
            Scheduler(device, 4, 4).run(
                [
                    Request(
                        "odd",
                        (1, 50),
                        (0,),
                        Sampling(temperature=1.0, top_p=1.0, max_tokens=4),
                        (END,),
                    )
                ]
            )
        )


def test_refusals_come_before_more_is_read():
    """A feed may wait for owed samples, as that of an engine in a child process does."""
    owed, window = set(), 6

    def feed():
        for number in range(40):
            assert len(owed) < window, "the feed would wait forever"
            owed.add(str(number))
            yield ask(str(number), new=8 if number % 10 == 9 else 64)

    finishes = Counter()
    for one in Scheduler(Device(cells=64), 4, 4).run(feed()):
        owed.remove(one.key)
        finishes[one.finish] += 1
    assert finishes == {"refused": 36, "length": 4}
    assert not owed


@pytest.mark.parametrize("cells", [70, 100, 200])
def test_cells_are_never_allocated_twice(cells):
    """At every step, the cells that samples under way may still need exist."""
    device = Device(cells=cells)
    held: Counter[int] = Counter()
    device.drop = lambda sequence, start=0: held.pop(sequence, None) if start == 0 else None  # type: ignore[method-assign]
    largest = 0
    decode = device.decode

    def counted(rows, wanted):
        nonlocal largest
        held.update(rows.sequences)
        largest = max(largest, sum(held.values()))
        return decode(rows, wanted)

    device.decode = counted  # type: ignore[method-assign]
    requests = [ask(str(number), samples=3, new=20) for number in range(30)]
    assert len(list(Scheduler(device, 8, 4).run(requests))) == 90
    assert 20 < largest <= cells


class Watchful(Device):
    """Checks that nothing is computed twice in one batch."""

    def decode(self, rows, wanted):
        places = list(zip(rows.sequences, rows.positions, strict=True))
        assert len(set(places)) == len(places), "a cell is computed twice"
        return super().decode(rows, wanted)


def test_canceled_request_is_computed_no_further():
    device = Device(says=1)
    scheduler = Scheduler(device, 4, 4)

    def feed():
        yield Request(
            "unwanted",
            (1, 2, 3),
            (0,),
            Sampling(temperature=1.0, top_p=1.0, max_tokens=1000),
            (END,),
        )
        for _ in range(5):
            yield None
        yield Cancel("unwanted")
        yield Request(
            "wanted", (1, 2, 3), (0,), Sampling(temperature=1.0, top_p=1.0, max_tokens=4), (END,)
        )

    assert [said.key for said in scheduler.run(feed())] == ["wanted"]
    assert len(device.batches) < 30


@pytest.mark.parametrize("seed", range(30))
def test_canceling_at_any_moment_leaves_nothing_behind(seed):
    """Requests share prefixes, some are canceled: the others complete, all cells are released."""
    rng = random.Random(seed)
    device = Watchful(cells=600, rows=16)
    scheduler = Scheduler(device, 4, 4)
    long = tuple(rng.randrange(40) for _ in range(120))
    wanted: set[str] = set()

    def feed():
        known: list[str] = []
        for number in range(40):
            key = str(number)
            tokens = (
                *long[: rng.randrange(1, 120)],
                *(rng.randrange(40) for _ in range(rng.randrange(3))),
            )
            wanted.add(key)
            known.append(key)
            yield Request(
                key,
                tokens,
                tuple(range(rng.randrange(1, 4))),
                Sampling(temperature=1.0, top_p=1.0, max_tokens=rng.randrange(1, 9)),
                (END,),
            )
            for _ in range(rng.randrange(4)):
                yield None
            if rng.random() < 0.4:
                gone = rng.choice(known)
                wanted.discard(gone)
                yield Cancel(gone)

    whole = Counter(said.key for said in scheduler.run(feed()))
    assert wanted <= set(whole)
    assert len(device.batches) < 2000
    assert scheduler.idle
    assert sorted(scheduler._free_sequences) == [0, 1, 2, 3]
    assert all(root.pins == 0 and root.is_complete for root in scheduler._roots._roots.values())


CLOSING = Closing((20, 21, 22), (1, 2, 3))


class Ending(Remembering):
    """Ends samples at random; knows what follows every sample."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.left: list[list[int]] = []

    def sample(self, samplers, rows):
        return [END if self._rng.random() < 0.2 else self._rng.randrange(10) for _ in samplers]

    def drop(self, sequence, start=0):
        if start == 0 and sequence < 8 and self.holds.get(sequence):
            self.left.append([*self.holds[sequence]])
        super().drop(sequence, start)


@pytest.mark.parametrize("rows", [12, 64])
def test_closing_follows_every_sample(rows):
    """It continues the sequence, behind the last token of a cut sample and instead of the stop."""
    device = Ending(rows=rows)
    requests = [ask(str(number), samples=5, new=6, closing=CLOSING) for number in range(20)]
    prompts = {request.key: request.tokens for request in requests}
    done = list(Scheduler(device, 8, 4).run(requests))
    assert {one.finish for one in done} == {"stop", "length"}
    expected = Counter((*prompts[one.key], *one.tokens, *CLOSING.tokens) for one in done)
    assert len(done) == 100
    # Samples move to other sequences now and then; what they leave behind is a beginning.
    assert not expected - Counter(map(tuple, device.left))
    for one in done:
        assert one.closing == pytest.approx(probabilities(device.row_logits(0), (1, 2, 3)))
        assert one.closing_text == "..."
        assert not set(one.tokens) & set(CLOSING.tokens)


def test_closing_costs_one_step_and_no_prompt_token():
    steps, computed = [], []
    for closing in (None, CLOSING):
        device = Device(says=7)
        scheduler = Scheduler(device, 4, 4)
        done = list(scheduler.run([ask("one", samples=3, closing=closing)]))
        steps.append(scheduler.stats.steps)
        computed.append(scheduler.stats.prompt_computed)
        assert all((one.closing is None) == (closing is None) for one in done)
        # A cut sample's last token had not been computed.
        assert scheduler.stats.closed == (0 if closing is None else 3 * 4)
    assert steps[1] == steps[0] + 1, "three samples that end together are closed together"
    assert computed[0] == computed[1]


def test_closing_of_an_empty_sample_counts_its_prompt_once():
    device = Device(says=END)
    scheduler = Scheduler(device, 4, 4)
    (one,) = scheduler.run([ask("one", closing=CLOSING)])
    assert (one.text, one.finish, scheduler.stats.prompt_computed) == ("", "stop", 12)
    assert one.closing is not None


def test_closing_ends_what_the_sample_left_open():
    bracket = Bracket("score", "ended", (30, 31))
    for brackets, added in (((bracket,), 2), ((), 0)):
        device = Device(says=7)  # its text is "score: "
        scheduler = Scheduler(device, 4, 4)
        closing = Closing((20,), (1,), brackets)
        (one,) = scheduler.run([ask("one", new=2, closing=closing)])
        assert one.closing_text == "." * (added + 1)
        assert scheduler.stats.closed == 1 + added + 1


def test_request_without_room_for_its_closing_is_refused():
    device = Device(cells=23)
    requests = [ask("fits", new=8, closing=CLOSING), ask("too long", new=9, closing=CLOSING)]
    finishes = {one.key: one.finish for one in Scheduler(device, 2, 2).run(requests)}
    assert finishes == {"fits": "length", "too long": "refused"}


def test_closings_have_cells_of_their_own():
    """Samples of one prompt share its 11 cells; with their closings, all fit the cache."""

    class Counting(Remembering):
        used = 0

        def decode(self, rows, wanted):
            failed = super().decode(rows, wanted)
            own = sum(max(0, len(tokens) - 11) for tokens in self.holds.values())
            self.used = max(self.used, 11 + own)
            return failed

    device = Counting(cells=40)
    device._says = 7
    done = list(Scheduler(device, 8, 4).run([ask("one", samples=8, new=4, closing=CLOSING)]))
    assert len(done) == 8 and 30 < device.used <= 40


def test_closings_share_a_full_batch():
    """All samples end at once, and the batch holds a token of each: closings take several steps."""
    device = Remembering(rows=8)
    device._says = 7
    done = list(Scheduler(device, 8, 4).run([ask("one", samples=8, new=3, closing=CLOSING)]))
    assert len(done) == 8 and all(one.closing for one in done)
    assert max(size for _, size, _ in device.batches) <= 8


def test_closing_survives_a_batch_that_does_not_fit():
    class Failing(Remembering):
        def decode(self, rows, wanted):
            if len(rows.tokens) > 3:
                self.batches.append((None, len(rows.tokens), len(wanted)))
                return 1
            return super().decode(rows, wanted)

    device = Failing(rows=32)
    device._says = 7
    done = list(Scheduler(device, 4, 4).run([ask("one", samples=4, new=3, closing=CLOSING)]))
    assert len(done) == 4 and all(one.closing for one in done)


def test_closing_without_tokens_is_named():
    with pytest.raises(EngineError, match="request one: a closing needs tokens and choices"):
        list(Scheduler(Device(), 4, 4).run([ask("one", closing=Closing((), (1,)))]))
    with pytest.raises(EngineError, match="request one: a token id is outside the model's 50"):
        list(Scheduler(Device(), 4, 4).run([ask("one", closing=Closing((1,), (50,)))]))


@pytest.mark.parametrize("seed", range(10))
def test_canceling_in_the_middle_of_closings_leaves_nothing_behind(seed):
    """A closing takes several steps here; what is not canceled is closed, in its own sequence."""
    rng, device = random.Random(seed), Ending(cells=400, rows=8)
    scheduler = Scheduler(device, 4, 3)
    closing = Closing(tuple(range(20, 36)), (1, 2, 3))
    wanted: dict[str, Request] = {}

    def feed():
        for number in range(30):
            asked = ask(str(number), samples=rng.randrange(1, 4), new=4, closing=closing)
            wanted[asked.key] = asked
            yield asked
            for _ in range(rng.randrange(8)):
                yield None
            if rng.random() < 0.4:
                gone = str(rng.randrange(number + 1))
                wanted.pop(gone, None)
                yield Cancel(gone)

    done = list(scheduler.run(feed()))
    assert len(device.batches) > 100
    assert {key: len(one.seeds) for key, one in wanted.items()}.items() <= Counter(
        one.key for one in done
    ).items()
    assert all(len(one.closing) == 3 and one.closing_text == "." * 16 for one in done)
    assert scheduler.idle
    assert sorted(scheduler._free_sequences) == [0, 1, 2, 3]
    scheduler.reset(None)
    assert scheduler._cells.free == 400
