"""cluster.yaml against Ray's schema, the model of the EC2 API, and the repository it installs from."""

import copy
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from castor.run.files import RUNS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def check_schema(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def ec2_problems(node_config: dict[str, Any]) -> str:
    """What EC2's RunInstances would refuse in a node_config; Ray's schema does not look inside it."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node_config}, shape).generate_report()


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    prepared = check_schema(cluster)
    assert prepared["head_node_type"] == "head"
    assert prepared["max_workers"] == sum(
        t["max_workers"] for t in cluster["available_node_types"].values() if "max_workers" in t
    )


def test_ray_rejects_an_unknown_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        check_schema(cluster | {"idle_timeout_minute": 10})


def test_ray_rejects_a_head_type_that_is_not_listed(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        check_schema(cluster | {"head_node_type": "hed"})


def test_the_head_has_no_gpu_and_workers_come_on_demand(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert "GPU" not in types["head"]["resources"]
    for role in ("rollout", "learner"):
        assert types[role]["min_workers"] == 0
        assert types[role]["max_workers"] > 0
        assert types[role]["resources"]["GPU"] > 0
        assert types[role]["resources"][role] == types[role]["resources"]["GPU"]


@pytest.mark.parametrize("role", ["head", "rollout", "learner"])
def test_ec2_knows_every_key_of_a_node(cluster: dict[str, Any], role: str) -> None:
    node_config = cluster["available_node_types"][role]["node_config"]
    assert ec2_problems(node_config) == ""
    assert "InstanceTyp" in ec2_problems(node_config | {"InstanceTyp": "m5.large"})


def test_nodes_install_from_the_lock_that_is_mounted(cluster: dict[str, Any]) -> None:
    assert (ROOT / cluster["file_mounts"]["~/castor/requirements"] / "gpu.lock").is_file()
    setup = "\n".join(cluster["setup_commands"])
    assert "~/castor/requirements/gpu.lock" in setup
    uv_version = (ROOT / "requirements" / "bootstrap.in").read_text().strip().removeprefix("uv==")
    assert f"uv/{uv_version}/" in setup


def test_every_node_starts_with_token_authentication(cluster: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        start = next(command for command in commands if "ray start" in command)
        assert "export PATH=$HOME/castor/.venv/bin:$PATH RAY_AUTH_MODE=token" in start


def test_runs_and_models_lie_where_every_node_mounts_a_file_system(cluster: dict[str, Any]) -> None:
    mounts = [command for command in cluster["setup_commands"] if " mount " in command]
    assert any("mountpoint -q /shared" in command for command in mounts)
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        start = next(command for command in commands if "ray start" in command)
        for variable, folder in ((RUNS, "/shared/castor"), ("HF_HOME", "/shared/huggingface")):
            assert f"{variable}={folder}" in start.partition("ray start")[0]
            assert any(folder in command for command in mounts)


@pytest.mark.parametrize("role", ["head", "rollout", "learner"])
def test_a_volume_writes_as_fast_as_is_paid_for(cluster: dict[str, Any], role: str) -> None:
    (volume,) = cluster["available_node_types"][role]["node_config"]["BlockDeviceMappings"]
    assert volume["Ebs"]["Throughput"] >= 1000  # MiB/s; 125 where nothing is said
    assert volume["Ebs"]["Throughput"] <= 0.25 * volume["Ebs"]["Iops"]  # EC2 asks for four times as many IOPS
