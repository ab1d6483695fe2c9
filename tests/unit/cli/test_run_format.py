"""The prompt format of a model is that of the run it lies in."""

import pytest

from castor.cli.run_format import format_of_run, format_of_runs
from castor.io.errors import CastorError


def test_the_format_of_the_run_that_a_model_lies_in(tmp_path):
    for run, config in (
        ("a", "template: pku\n"),
        ("b", "seed: 1\n"),
        ("c", "template: 'Q: {prompt} A:'\n"),
        ("d", "template: chat"),
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.yaml").write_text(config)
        (tmp_path / run / "stages.json").write_text("{}")
    model = {run: str(tmp_path / run / "cost") for run in "abcd"}
    assert format_of_run(model["a"]) == "pku"
    assert format_of_run(str(tmp_path / "a" / "round-2" / "reward")) == "pku"
    assert format_of_run(model["b"]) == "auto"
    assert format_of_run(model["c"]) == "Q: {prompt} A:"
    assert format_of_run(str(tmp_path / "elsewhere" / "cost")) is None
    assert format_of_runs(["org/model", model["a"], str(tmp_path / "a" / "qa")]) == "pku"
    assert format_of_runs(["org/model"]) is None
    assert format_of_runs([model["b"], model["d"], "org/model"]) == "auto"
    with pytest.raises(CastorError, match=r"different prompt formats, 'pku' \(.*\), 'auto' \(.*assess them one by one"):
        format_of_runs([model["a"], model["b"]])
