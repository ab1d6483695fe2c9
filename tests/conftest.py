"""Shared fixtures: one Ray instance and one set of tiny models for the whole session."""

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from castor.data.tokens.prompt_stream import Prompt

settings.register_profile("castor", deadline=None)  # how long a machine takes proves nothing
settings.load_profile("castor")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every process that a test starts would compile torch, vLLM and the rest anew: more than half of its time to start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
TOGETHER = ("tests/chaos", "tests/integration/serve")  # their files share a run, and a served policy


class _Together(LoadScopeScheduling):
    """Hands out the tests of a file, or of a folder in `TOGETHER`, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Together:
    """What each of several processes carries out."""
    return _Together(config, log)


def pytest_collection_finish() -> None:
    """DeepSpeed and vLLM collect several times for every engine: what is there by now need not be looked through."""
    gc.freeze()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray instance with four logical CPUs."""
    import ray

    from actors.cluster import cluster
    from castor.config.cluster import RayCluster

    with cluster(RayCluster(num_cpus=4)):
        yield
    assert not ray.is_initialized()


@dataclass(frozen=True)
class TinyModels:
    """Folders of an untrained policy and of reward and cost models on its backbone."""

    policy: str
    reward: str
    cost: str


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """A Llama of 2 x 64, its tokenizer trained on synthetic text, and two random score models."""
    import torch

    from castor.config.data import DataSource
    from castor.config.demo_model import DemoModel
    from castor.data.rows.load import stream_demonstrations
    from castor.data.sources.report import RowReport
    from castor.models.score import ScoreInfo, ScoreModel, save_score_model
    from castor.models.tiny import make_demo_model

    folder = tmp_path_factory.mktemp("models")
    rows = list(stream_demonstrations(DataSource(limit=600), RowReport()))
    config = DemoModel(hidden_size=64, intermediate_size=96, heads=2, max_position_embeddings=160)
    make_demo_model(config, (text for row in rows for text in (row.prompt, row.response)), 0, folder / "policy")
    torch.manual_seed(1)
    for kind in ("reward", "cost"):
        model = ScoreModel.from_backbone(str(folder / "policy"), ScoreInfo(kind), torch.float32)  # type: ignore[arg-type]
        weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
        save_score_model(folder / kind, model.backbone, weights, model.info, str(folder / "policy"))
    return TinyModels(*(str(folder / kind) for kind in ("policy", "reward", "cost")))


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Two hundred synthetic prompts."""
    from castor.config.data import DataSource
    from castor.data.rows.load import load_prompts
    from castor.data.sources.report import RowReport

    return load_prompts(DataSource(limit=200), RowReport())


@pytest.fixture(scope="session")
def tokenised_prompts(prompts: list[str], tiny_models: TinyModels) -> list[Prompt]:
    """The synthetic prompts with the token ids of the tiny policy."""
    from castor.data.tokens.template import PromptTemplate, load_tokenizer

    template = PromptTemplate(load_tokenizer(tiny_models.policy))
    return template.tokenised(prompts)
