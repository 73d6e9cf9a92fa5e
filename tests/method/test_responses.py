"""Responses: which are kept, and where their seeds come from."""

from method_records import RUN, finish_asking, make_completions, make_prompt

from selfreward_lite.method import responses
from selfreward_lite.method.roles import Role


def test_responses_are_deduplicated_and_counted(role):
    asking = responses.ask_for_responses(make_prompt(), role, 5)
    (request,) = next(asking)
    assert len(request.seeds) == len(set(request.seeds)) == 5
    outcome = finish_asking(asking, [make_completions(request, ["a b", "a b ", "", "b a", "a b"])])
    assert [one.text for one in outcome.records] == ["a b", "b a"]
    assert outcome.drops.total() == 3
    assert set(outcome.drops) == {"equal to another", "empty"}


def test_responses_of_two_models_have_the_same_seeds(role, chat):
    (one,) = next(responses.ask_for_responses(make_prompt(), role, 3))
    other_role = Role("M1", "x.gguf", chat, role.sampling, "compact", RUN, 7, 2)
    (other,) = next(responses.ask_for_responses(make_prompt(), other_role, 3))
    assert one.seeds == other.seeds
    assert one.key != other.key
