"""Light modules stay light: the contract in pyproject.toml says which they are, here they are imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_modules_of_the_contract_load_nothing_that_computes() -> None:
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    contract = next(each for each in contracts if each["name"].startswith("planning"))
    modules = [name for name in contract["source_modules"] if name.startswith("core.")]
    assert len(modules) > 40
    heavy = {*contract["forbidden_modules"], "tokenizers", "jinja2", "pandas", "scipy"}
    program = f"import sys, {', '.join(modules)}\nprint(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
