"""Lightning as this project imports it, in processes of their own: what is imported stays."""

import subprocess
import sys

UNUSED = ["transformers", "scipy", "matplotlib", "torch._dynamo"]
LISTED = f"print(*[name for name in {UNUSED} if name in sys.modules])"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_it_only_asks_for_is_neither_imported_nor_lost() -> None:
    program = f"""
import sys
from core.runtime.lightning_import import lightning
{LISTED}
from lightning_utilities.core.imports import RequirementCache, package_available
print(bool(RequirementCache("scipy")), package_available("matplotlib"), package_available("nosuch"))
import torch
from lightning.fabric.wrappers import _unwrap_compiled
from lightning.pytorch.utilities.compile import to_uncompiled
plain = lightning.LightningModule()
compiled = torch.compile(plain)
print(_unwrap_compiled(plain)[0] is plain, _unwrap_compiled(compiled)[0] is plain, to_uncompiled(compiled) is plain)
from torch._dynamo import OptimizedModule
print(isinstance(compiled, OptimizedModule), "scipy" in sys.modules)
"""
    assert run(program).splitlines() == ["", "True True False", "True True True", "True False"]


def test_a_version_that_needs_more_is_imported_as_it_is() -> None:
    program = """
import sys
class Newer:  # its wrappers want a name that the stand-in for torch._dynamo lacks
    def find_spec(self, name, path=None, target=None):
        dynamo = sys.modules.get("torch._dynamo")
        if name == "lightning.fabric.wrappers" and dynamo is not None and not hasattr(dynamo, "config"):
            raise ImportError("cannot import name 'config'")
sys.meta_path.insert(0, Newer())
from core.runtime.lightning_import import lightning
import lightning.fabric.wrappers as wrappers
print(lightning.Trainer.__name__, wrappers.OptimizedModule.__module__)
"""
    assert run(program) == "Trainer torch._dynamo.eval_frame\n"
