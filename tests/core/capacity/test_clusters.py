"""Clusters by name and by file, and what is refused."""

from pathlib import Path

import pytest

from core.capacity.clusters import DEVICES, Cluster, device_of_record
from core.errors import UserError


@pytest.mark.parametrize(
    ("text", "devices", "device", "per_node", "nodes"),
    [
        ("64xH100-80G", 64, "H100-80G", 8, 8),
        ("32 x a100-40g/4", 32, "A100-40G", 4, 8),
        ("H200-141G", 1, "H200-141G", 8, 1),
        ("4xB200", 4, "B200-192G", 8, 1),
        ("2xcpu", 2, "cpu", 8, 1),
    ],
)
def test_a_cluster_is_read_from_its_name(text: str, devices: int, device: str, per_node: int, nodes: int) -> None:
    cluster = Cluster.parse(text)
    assert (cluster.devices, cluster.device.name, cluster.per_node, cluster.nodes) == (devices, device, per_node, nodes)
    assert Cluster.parse(str(cluster)) == cluster


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xV100-32G", "unknown device 'V100-32G'.*A100-40G.*B200-192G"),
        ("8xA100", "did you mean A100-40G or A100-80G"),
        ("8xH100-81G", "did you mean H100-80G"),
        ("eight", "unknown device 'eight'"),
        ("8x", "is not a cluster: write COUNTxDEVICE"),
        ("0xH100-80G", "at least 1 device"),
        ("12xH100-80G", "12 devices don't fill nodes of 8.*12xH100-80G/6"),
        ("nowhere.yaml", "no such config file"),
    ],
)
def test_a_mistake_names_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Cluster.parse(text)


def test_a_file_describes_a_cluster_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("devices: 16\nper_node: 4\ndevice: {like: H100-80G, memory: 94.0e+9, nvlink: 2.0e+11}\n")
    cluster = Cluster.parse(str(file))
    assert (cluster.devices, cluster.nodes, cluster.device.name) == (16, 4, "ours")
    assert cluster.device.memory == 94e9 and cluster.device.flops == DEVICES["H100-80G"].flops
    for content, said in (
        ("devices: 16\n", "device is missing"),
        ("device: H100-80G\ncount: 3\n", "unknown key 'count'"),
        ("device: {like: H100-80G, memry: 1}\n", "unknown key device.memry"),
        ("device: {memory: 1.0e+9}\n", "device.flops.* is missing"),
        ("device: {like: H100-80G, memory: -1}\n", "memory must be a positive number"),
        ("device: {like: H100-80G, memory: 80G}\n", "memory must be a positive number, not '80G'"),
        ("device: H100-80G\ndevices: many\n", "devices must be a whole number"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            Cluster.parse(str(file))


def test_a_records_device_is_recognised() -> None:
    named = {
        "cuda: NVIDIA H200": "H200-141G",
        "cuda: NVIDIA H100 80GB HBM3": "H100-80G",
        "cuda: NVIDIA A100-SXM4-40GB": "A100-40G",
        "cuda: NVIDIA A100-SXM4-80GB": "A100-80G",
        "cuda: NVIDIA B200": "B200-192G",
        "cpu: x86_64": "cpu",
    }
    for described, name in named.items():
        found = device_of_record(described)
        assert found is not None and found.name == name, described
    assert device_of_record("cuda: Tesla T4") is None
