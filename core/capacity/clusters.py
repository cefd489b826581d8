"""Machines to train on: what a device holds, computes and sends, and how many share a node."""

import difflib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.config.loading import read_yaml
from core.errors import UserError, require

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One accelerator and its share of the node. Bytes, FLOP/s without sparsity, bytes/s in one direction.

    memory is what a process may use. host_memory and host_bandwidth are of the node's host, whole; host_link is the
    device's own way there. nic is the device's share of the network between nodes.
    """

    name: str
    memory: float
    flops: float  # bf16
    flops_fp32: float
    bandwidth: float  # of its memory
    nvlink: float
    nic: float
    host_memory: float = 2000 * GB
    host_link: float = 55 * GB
    host_bandwidth: float = 400 * GB
    overhead: float = 0.6 * GB  # context and libraries' workspaces, which no allocator sees
    group_overhead: float = 1.4 * GB  # and NCCL's buffers, where there are others to talk to

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "name":
                continue
            least = entry.name in ("overhead", "group_overhead")
            require(
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and (value > 0 or (least and value == 0)),
                f"a device's {entry.name} must be a positive number, not {value!r}",
            )


# Data sheets of the SXM modules and of the DGX systems that hold eight: A100 (2021), H100 (2023), H200 (2023), B200
# (2024; HGX at 1 kW, 1,440 GB of memory in eight). NVLink is half of the advertised sum of both directions; the network is
# one port a device: HDR at 200 Gb/s for A100, NDR at 400 Gb/s since.
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("A100-40G", 40 * GB, 312e12, 19.5e12, 1555 * GB, 300 * GB, 25 * GB, 1000 * GB, 25 * GB, 300 * GB),
        Device("A100-80G", 80 * GB, 312e12, 19.5e12, 2039 * GB, 300 * GB, 25 * GB, 2000 * GB, 25 * GB, 300 * GB),
        Device("H100-80G", 80 * GB, 989e12, 67e12, 3350 * GB, 450 * GB, 50 * GB),
        Device("H200-141G", 141 * GB, 989e12, 67e12, 4800 * GB, 450 * GB, 50 * GB),
        Device("B200-192G", 180 * GB, 2250e12, 80e12, 8000 * GB, 900 * GB, 50 * GB),
        # A process of this machine, for tests and for records that a CPU made: two cores, as measured in docs/speed.md.
        Device("cpu", 8 * GB, 0.4e12, 0.2e12, 20 * GB, 5 * GB, 1 * GB, 8 * GB, 10 * GB, 20 * GB, 0.0, 0.0),
    )
}


@dataclass(frozen=True)
class Cluster:
    """Alike devices in alike nodes."""

    devices: int
    device: Device
    per_node: int = 8

    def __post_init__(self) -> None:
        require(self.devices >= 1, f"a cluster has at least 1 device, not {self.devices}")
        require(self.per_node >= 1, f"a node has at least 1 device, not {self.per_node}")
        require(
            self.devices <= self.per_node or self.devices % self.per_node == 0,
            f"{self.devices} devices don't fill nodes of {self.per_node}: use a multiple, or say how many a node has, "
            f"such as {self.devices}x{self.device.name}/{_divisor(self.devices, self.per_node)}",
        )

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)

    @property
    def on_node(self) -> int:
        """Devices that share a node."""
        return min(self.devices, self.per_node)

    def __str__(self) -> str:
        apart = "" if self.per_node == 8 else f"/{self.per_node}"
        return f"{self.devices}x{self.device.name}{apart}"

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """`64xH100-80G`; `64xH100-80G/4` with nodes of four; `H100-80G` for one; or a YAML file of one's own.

        The file holds `devices`, `per_node` and `device`: a known name, or a mapping of core.capacity.clusters.Device's
        fields, which `like: H100-80G` completes. Raises UserError.
        """
        path = Path(text)
        if path.suffix in (".yaml", ".yml"):
            return _of_file(path)
        match = re.fullmatch(r"(?:(\d+)\s*[xX×*]\s*)?([A-Za-z][\w.-]*)(?:/(\d+))?", text.strip())
        if match is None:
            raise UserError(
                f"'{text}' is not a cluster: write COUNTxDEVICE, such as 64xH100-80G, 64xH100-80G/4 for nodes of four, or "
                "a YAML file"
            )
        count, name, per_node = match.groups()
        return cls(int(count or 1), device_named(name), int(per_node or 8))


def device_named(name: str) -> Device:
    """The device of that name, whatever its case; `H100` where only one is called so. Raises UserError."""
    by_name = {known.lower(): device for known, device in DEVICES.items()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    short = [device for known, device in by_name.items() if known.split("-")[0] == name.lower()]
    if len(short) == 1:
        return short[0]
    near = [device.name for device in short] or [
        by_name[found].name for found in difflib.get_close_matches(name.lower(), by_name, n=2, cutoff=0.7)
    ]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown device '{name}': {hint}known are {', '.join(DEVICES)}, and others by a YAML file (docs/capacity.md)"
    )


def device_of_record(described: str) -> Device | None:
    """The device of a record's provenance ("cuda: NVIDIA H200", "cpu: x86_64"); None where it isn't known."""
    kind, _, name = described.partition(": ")
    if kind == "cpu":
        return DEVICES["cpu"]
    words = re.split(r"[\s-]+", name.upper())
    alike = {known: device for known, device in DEVICES.items() if known.split("-")[0] in words}
    sized = [device for known, device in alike.items() if f"{known.split('-')[-1]}B" in words]
    return next(reversed(sized or list(alike.values())), None)


def _of_file(path: Path) -> Cluster:
    content = read_yaml(path)
    unknown = sorted(set(content) - {"devices", "per_node", "device"})
    require(not unknown, f"{path}: unknown key '{', '.join(unknown)}': a cluster has devices, per_node and device")
    require("device" in content, f"{path}: device is missing: a known name, or a mapping such as {{like: H100-80G}}")
    for name in ("devices", "per_node"):
        value = content.get(name, 1)
        require(isinstance(value, int) and not isinstance(value, bool), f"{path}: {name} must be a whole number")
    try:
        return Cluster(content.get("devices", 1), _device_of(content["device"], path), content.get("per_node", 8))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def _device_of(said: Any, path: Path) -> Device:
    if isinstance(said, str):
        return device_named(said)
    require(isinstance(said, dict), f"{path}: device must be a name or a mapping")
    names = [entry.name for entry in fields(Device)]
    unknown = sorted(set(said) - {*names, "like"})
    require(not unknown, f"{path}: unknown key device.{', '.join(unknown)}: a device has {', '.join(names)}, like")
    base = vars(device_named(said["like"])) if "like" in said else {}
    made = base | {"name": path.stem} | {key: value for key, value in said.items() if key != "like"}
    missing = [name for name in names[:7] if name not in made]
    require(not missing, f"{path}: device.{', '.join(missing)} is missing: say it, or name a known device as `like`")
    return Device(**made)


def _divisor(count: int, most: int) -> int:
    return next(part for part in range(most, 0, -1) if count % part == 0)
