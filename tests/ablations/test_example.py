"""The worked example of docs/example.md: its file, and every command of the page in its order, in an empty folder."""

import re
import shlex

import pytest

from tests.ablations.shell import ROOT, ablate

PAGE = (ROOT / "docs" / "example.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_worked_example_does_what_the_page_says(tmp_path) -> None:
    (tmp_path / "rate.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], encoding="utf-8")
    said = {}
    for line in re.findall(r"^    ablate (.+)$", PAGE, re.M):
        done = ablate(*shlex.split(line, comments=True), cwd=tmp_path)
        refused = line.startswith("train")  # the target's corpus isn't named
        assert done.returncode == (2 if refused else 0), f"ablate {line}: {done.stdout}{done.stderr}"
        said[line.split()[0]] = done.stdout + done.stderr
    assert list(said) == ["plan", "run", "status", "report", "verify", "confirm", "export", "train"]
    assert "15 runs" in said["plan"] and "2.05 sd" in said["plan"]
    assert re.search(r"0\.003 +2\.69\d? .* better", said["report"])
    assert re.search(r"0\.003 is confirmed on 5 fresh seeds: -0\.09", " ".join(said["confirm"].split()))
    assert "2.61e-06" in said["export"] and "data.tokenizer=bytes has 259 token ids" in said["train"]
    assert (tmp_path / "runs/rate/report.html").is_file() and (tmp_path / "paper/val-nelbo.tex").is_file()
    assert (tmp_path / "runs/rate/export/llada_moe_7b_a1b/train.sbatch").is_file()


def test_the_pages_table_is_one_that_its_commands_can_print() -> None:
    """Intervals hold their estimates, and verdicts follow from p."""
    rows = re.findall(
        r"^\| (learning_rate [\d.]+) \| [\d.]+ \| (−?[\d.]+) \| \[(−[\d.]+), (−[\d.]+)\] \| (\S+) \|", PAGE, re.M
    )
    assert len(rows) == 2
    for _, effect, low, high, p in rows:
        effect, low, high = (float(text.replace("−", "-")) for text in (effect, low, high))
        assert low < effect < high < 0 and float(p.lstrip("<")) < 0.05
