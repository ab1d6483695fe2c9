"""What is dealt to workers when: suspects wait until a worker owes nothing."""

import numpy as np
import pytest
import ray

from actors.jobs import Job
from actors.rollout import ChunkInfo, PromptRequest
from actors.streams import Streams
from castor.data.tokens.prompt_stream import Prompt

TIMEOUT_S = 60.0


@ray.remote(num_cpus=0)
class Echo:
    """Answers each request with its number, a chunk each."""

    def generate(self, requests, decode):
        for request in requests:
            yield request.uid
            yield ChunkInfo((request.uid,), 1, 0, 0, None)


@pytest.fixture(scope="module")
def workers(ray_session):
    made = [Echo.remote() for _ in range(2)]
    yield made
    for worker in made:
        ray.kill(worker)


@pytest.fixture
def batch():
    """Two samples of each of three prompts, and their job."""
    prompts = [Prompt(str(number), np.arange(3)) for number in range(3)]
    requests = [PromptRequest(2 * i + k, prompt, i) for i, prompt in enumerate(prompts) for k in range(2)]
    return requests, Job({request.uid for request in requests}, False, None, 0)


def take(streams, workers):
    """One event: the uid of a chunk, or None for the end of a stream."""
    (event,), _ = ray.wait(list(streams.dealt), timeout=TIMEOUT_S)
    chunk = streams.next_chunk(event)
    if chunk is None:
        assert streams.end(event) == []
        return None
    (uid,) = chunk.info.uids
    assert ray.get(chunk.experience, timeout=TIMEOUT_S) == uid
    streams.answered([streams.dealt[event].waiting.pop(uid)], workers)
    return uid


def suspected(requests, job, worker):
    """Streams in which a worker has died of all these requests twice."""
    streams = Streams(TIMEOUT_S)
    for _ in range(2):
        streams.deal(requests, job, [worker])
        streams.note_death(worker)
        streams.abandon()
    return streams


def test_suspects_are_dealt_a_prompt_at_a_time(workers, batch):
    requests, job = batch
    worker, other = workers
    streams = suspected(requests, job, worker)
    streams.deal(requests, job, [worker])
    answered = []
    for number in range(3):
        assert streams.owed(worker) == [requests[2 * number : 2 * number + 2]]  # and nothing else
        while len(answered) < 2 * number + 2:  # the end of a stream comes at any time after its chunks
            answered += [uid for uid in (take(streams, [worker]),) if uid is not None]
    assert sorted(answered) == [0, 1, 2, 3, 4, 5]
    assert streams.owed(worker) == []
    streams.deal(requests, job, [worker, other])  # they have had their answers, and are no suspects any more
    assert [len(each) for each in streams.owed(worker) + streams.owed(other)] == [3, 3]


def test_a_suspect_waits_for_a_worker_that_owes_nothing(workers, batch):
    requests, job = batch
    worker, other = workers
    streams = suspected(requests[:2], job, worker)
    streams.deal(requests[2:], job, workers)
    streams.deal(requests[:2], job, workers)
    assert [len(each) for each in streams.owed(worker) + streams.owed(other)] == [2, 2]
    while not any(requests[0] in each for each in streams.owed(worker) + streams.owed(other)):
        take(streams, workers)
    (alone,) = (each for each in workers if any(requests[0] in owed for owed in streams.owed(each)))
    assert streams.owed(alone) == [requests[:2]]
    assert streams.note_death(alone).prompt is requests[0].prompt


def test_what_is_held_is_forgotten_with_everything_else(workers, batch):
    requests, job = batch
    streams = suspected(requests, job, workers[0])
    streams.deal(requests, job, workers[:1])
    streams.abandon()
    streams.answered([], workers)
    assert streams.owing() == set()


def test_nothing_may_be_dealt_to_nobody(batch):
    _, job = batch
    streams = Streams(TIMEOUT_S)
    streams.deal([], job, [])
    assert streams.dealt == {}
