"""The run that nobody disturbs, which all others are held against."""

import pytest

from tests.chaos.rlhf_run import Run


@pytest.fixture(scope="session")
def undisturbed(ray_session, tiny_models, tmp_path_factory):
    """Its `Run.result`."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run(folder / "run", tiny_models)
        run.go()
    assert not run.files.training.folder.exists()
    return run.result()
