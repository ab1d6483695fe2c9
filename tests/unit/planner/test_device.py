"""Devices, calibrations and what a cluster offers."""

import json
from pathlib import Path

import pytest

from castor.config.load import load_config
from castor.config.pipeline import Config
from castor.io.errors import CastorError
from castor.planner.device import DEVICES, H100, device, read_device
from castor.planner.offer import make_offer

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster.yaml"


def test_a_device_is_found_by_its_name_in_any_case():
    assert device("h100") is H100
    with pytest.raises(CastorError, match="no figures are known of the GPU 'H1000': --gpu-type takes H100, H200"):
        device("H1000")


def test_a_calibration_is_read_with_what_it_leaves_out(tmp_path):
    file = tmp_path / "cpu.json"
    rates = dict.fromkeys(("flops", "bandwidth", "link", "network", "host_link"), 1e9)
    file.write_text(json.dumps({"name": "CPU", "memory_gib": 4, "cores": 1.5} | rates))
    read = read_device(file)
    assert read.is_cpu
    assert (read.flops, read.cores) == (1e9, 1.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no calibration"),
        ('{"name": "CPU"}', "has to hold the fields of a device"),
        ('{"name": "CPU", "flops": 1, "flop": 1}', "has to hold the fields of a device"),
        ('{"name": "CPU", "flops": -1}', "flops is -1, and has to be a number that is not negative"),
        ('{"name": "CPU", "flops": 1}', "is no calibration"),
    ],
    ids=["no JSON", "too little", "an unknown field", "a negative rate", "rates are missing"],
)
def test_what_is_no_calibration_is_said(tmp_path, text, said):
    file = tmp_path / "cpu.json"
    file.write_text(text)
    with pytest.raises(CastorError, match=said):
        read_device(file)


def test_gpus_come_from_the_config_unless_they_are_named():
    config = load_config(ROOT / "configs" / "llama-8b" / "ppo_lag.yaml")
    offer = make_offer(config, 8, None, None, None)
    assert (offer.gpus, offer.gpus_per_node, offer.device.name) == (8, 8, "H100")
    assert "by default" in offer.told
    more = make_offer(config, 8, 20, "A100-40GB", None)
    hardware = more.hardware
    assert (hardware.nodes, hardware.gpus_per_node, hardware.gpu_memory_gib) == (3, 8, 39)
    with pytest.raises(CastorError, match="add --gpus N"):
        make_offer(Config(), 0, None, None, None)


def test_gpus_of_a_cluster_file_are_those_of_its_node_types():
    offer = make_offer(Config(), 8, None, None, CLUSTER)
    assert (offer.device, offer.gpus, offer.gpus_per_node) == (DEVICES["A100"], 8, 8)
    assert "4 x 8 A100 and 4 x 8 H100" in offer.told
    assert make_offer(Config(), 8, 32, "h100", CLUSTER).device is H100
    with pytest.raises(CastorError, match="offers at most 32 GPUs, and 40 are asked for"):
        make_offer(Config(), 8, 40, "H100", CLUSTER)
    with pytest.raises(CastorError, match="no node type with GPUs of type L40S"):
        make_offer(Config(), 8, None, "L40S", CLUSTER)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "cannot be read as a cluster file"),
        ("a: 1", "it has no available_node_types"),
        ("available_node_types: {x: {resources: {CPU: 1}}}", "no node type with GPUs"),
        (
            "available_node_types: {x: {resources: {GPU: 2}, max_workers: 1, node_config: {InstanceType: z9}}}",
            "which GPUs the node type 'x' has is not known",
        ),
    ],
    ids=["no YAML", "another file", "no GPUs", "an unknown instance"],
)
def test_what_is_no_cluster_with_gpus_is_said(tmp_path, text, said):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(CastorError, match=said):
        make_offer(Config(), 8, None, None, file)
