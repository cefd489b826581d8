"""A ladder's records -> its law."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.scaling import checked
from core.errors import UserError


def unfittable(design: Mapping[str, Any]) -> str:
    """Why no law could be fitted to a ladder even if all of its runs finished; empty where one could."""
    points = [arm["point"] | {"parameters": arm["parameters"]["active"]} for arm in design["arms"]]
    columns = {name: [point[name] for point in points] for name in ("parameters", "tokens")}
    try:
        checked({**columns, "loss": np.ones(len(points))})
    except UserError as error:
        return str(error)
    return ""
