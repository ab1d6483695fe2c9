"""Who is to blame for the deaths of engines: nobody, until a prompt is alone at one and was there before."""

from actors.rollout import PromptRequest
from actors.suspects import Suspects
from castor.data.tokens.prompt_stream import Prompt


def requests(prompts, samples=2):
    made = [Prompt(str(number), None) for number in range(prompts)]
    return [PromptRequest(i * samples + k, prompt, i + k) for i, prompt in enumerate(made) for k in range(samples)]


def test_a_prompt_that_is_alone_at_its_third_death_is_deadly():
    suspects, batch = Suspects(), requests(3)
    for _ in range(2):
        assert not any(suspects.alone(request) for request in batch)
        assert suspects.note_death([batch]) is None
    assert all(suspects.alone(request) for request in batch)
    for request in batch[:2]:
        suspects.clear(request)  # the first prompt has its answers
    deadly = suspects.note_death([batch[2:3]])
    assert (deadly.prompt, deadly.deaths) == (batch[2].prompt, 3)
    assert "3 engines died, or fell silent, while they sampled from '1'" in str(deadly)


def test_one_death_alone_proves_nothing_and_two_do():
    suspects, batch = Suspects(), requests(1)  # two samples of one prompt are one prompt
    assert suspects.note_death([batch]) is None
    deadly = suspects.note_death([batch])
    assert (deadly.prompt, deadly.deaths) == (batch[0].prompt, 2)


def test_a_death_that_another_stream_may_have_caused_is_nobodys_fault():
    """What was answered in the first stream can be lost when the worker dies in the second."""
    suspects, (innocent, deadly) = Suspects(), requests(2, samples=1)
    suspects.note_death([[innocent, deadly]])
    suspects.note_death([[innocent, deadly]])
    assert suspects.note_death([[innocent], [deadly]]) is None
    assert suspects.note_death([[deadly]]).prompt is deadly.prompt


def test_an_answer_clears_a_request_and_idle_workers_have_no_suspects():
    suspects, batch = Suspects(), requests(1, samples=1)
    suspects.note_death([batch])
    suspects.clear(batch[0])
    suspects.clear(batch[0])  # one that was never suspected
    assert suspects.note_death([batch]) is None
    assert suspects.note_death([]) is None
