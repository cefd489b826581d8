"""Seconds that collectives take over NVLink and between nodes.

A group is of `members` devices that lie `apart` devices from one another: 1 for all devices in a row, E for those that hold
the same experts under expert parallelism E. A ring that spans nodes passes each node's boundary once for all of the members
there, which use their network ports together; E such groups are at work at once, each with its own members' ports.
"""

import math

from core.capacity.assumptions import Assumptions
from core.capacity.clusters import Cluster


def reduce_s(size: float, members: int, apart: int, cluster: Cluster, assume: Assumptions, *, whole: bool) -> float:
    """All-reduce (whole) or reduce-scatter of `size` bytes: 2 (n - 1) / n of them pass each link, or half of that."""
    return (2 if whole else 1) * gather_s(size, members, apart, cluster, assume)


def gather_s(size: float, members: int, apart: int, cluster: Cluster, assume: Assumptions, *, calls: int = 1) -> float:
    """All-gather to `size` bytes: (n - 1) / n of them pass each link. calls: collectives that they are spread over."""
    if members <= 1 or not size:
        return 0.0
    on_node = max(1, min(members, cluster.on_node // apart))
    slowest = cluster.device.nvlink
    if on_node < members:
        slowest = min(cluster.device.nvlink if on_node > 1 else math.inf, cluster.device.nic * on_node)
    hops = 1 + math.log2(max(1, members // on_node))
    return (members - 1) / members * size / (slowest * assume.link) + calls * hops * assume.latency


def all_to_all_s(size: float, members: int, cluster: Cluster, assume: Assumptions) -> float:
    """Each of neighbouring devices sends 1 / n of its `size` bytes to every one: what stays on the node goes by NVLink."""
    on_node = min(members, cluster.on_node)
    near, far = (on_node - 1) / members * size, (members - on_node) / members * size
    return max(near / cluster.device.nvlink, far / cluster.device.nic) / assume.all_to_all
