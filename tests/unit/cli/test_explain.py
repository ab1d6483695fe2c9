"""`castor explain`, and `--full` of a dry run."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.cli.main import app
from castor.io.errors import CastorError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def told(*words):
    result = CliRunner().invoke(app, ["explain", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_an_option_with_its_type_range_default_and_presets():
    text = told("rlhf.ppo_lag.multipliers.lambda_max")
    assert text.startswith("rlhf.NAME.multipliers.lambda_max  (castor pipeline)\n  upper limit of λ")
    assert "  type     number or null\n  allowed  > 0 and ≤ 1e+06\n  default  5\n" in text
    assert "  presets  5.0 (demo" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_same_option_in_several_places_is_explained_once():
    text = told("optimizer.lr")
    assert text.count("peak learning rate") == 1
    assert "  rlhf.NAME.learner.engine.optimizer.lr\n    default  1e-05\n" in text


def test_a_section_lists_what_lies_in_it():
    text = told("guard.windows")
    assert text.startswith("guard.windows  (castor serve)\n")
    assert "In guard.windows:\n  tokens " in text


def test_options_of_several_commands_are_told_apart_and_without_a_key_all_sections_are_listed():
    text = told("ray.address")
    assert "ray.address  (castor pipeline)" in text
    assert "ray.address  (castor serve)" in text
    text = told()
    assert "castor pipeline, its sections and options:\n  run_dir" in text
    assert "castor serve, its sections and options:\n  run_dir" in text
    assert "castor assess, its sections and options:\n  models" in text


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("rlhf.ppo_lag.stepz", r"did you mean rlhf\.ppo_lag\.steps\?"),
        ("gateway.prt", r"did you mean gateway\.port\?"),
        ("qqqqqq", "castor explain lists the sections"),
    ],
)
def test_an_unknown_option_gets_the_nearest_one(key, hint):
    with pytest.raises(CastorError, match=hint):
        told(key)


def test_the_whole_config_belongs_to_a_dry_run():
    with pytest.raises(CastorError, match="--full tells more of a dry run: add --dry-run"):
        CliRunner().invoke(app, ["sft", str(DEMO), "--full"], catch_exceptions=False)
