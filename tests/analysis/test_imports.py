"""A verdict imports numpy and scipy.special, and nothing that is slower to import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW = {"scipy.stats", "scipy.optimize", "statsmodels", "pandas", "matplotlib", "jinja2", "torch"}
JUDGE = """
import sys
from pathlib import Path
from rich.console import Console
from analysis.study import Study
from analysis.statistics.power import reach_of
from analysis.verdicts.interim import running
from analysis.report.terminal import terminal_table
from analysis.verdicts.judge import judge
from core.records.run_record import RunRecord

lines = Path("tests/analysis/golden/records.jsonl").read_text(encoding="utf-8").splitlines()
study = Study.of([RunRecord.from_json(line) for line in lines])
judge(study, brief=True), running(study), reach_of(study.design)
Console(stderr=True).print(terminal_table(judge(study)))
print("\\n".join(sys.modules))
"""


def test_a_study_of_arms_is_judged_without_what_is_slow_to_import() -> None:
    done = subprocess.run([sys.executable, "-c", JUDGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stderr
    assert "scipy.special" in done.stdout.split() and not SLOW & set(done.stdout.split())
