import itertools
import signal

import pytest

from sweeps.runs import slurm_jobs
from sweeps.runs.array_tasks import Task
from sweeps.studies.ablation import Ablation
from sweeps.studies.factors import Factor
from sweeps.studies.plan import Plan
from sweeps.studies.resolve import plan
from tests.sweeps import postgres as postgresql

SMALL = {
    "data.corpus": "markov", "data.sequence_length": 16, "data.validation_sequences": 8, "model.hidden_size": 16,
    "model.num_heads": 1, "model.head_dim": 16, "model.num_layers": 1, "model.num_experts": 4, "model.expert_width": 8,
    "trainer.steps": 30, "trainer.batch_size": 4, "trainer.validate_every": 15, "trainer.log_every": 5,
}  # fmt: skip


def declare(**changes) -> Ablation:
    fields = {
        "question": "Does the load-balancing loss lower the NELBO?",
        "base": "tiny",
        "factors": (Factor("objective.load_balancing_weight", (0.0, 0.01)),),
        "control": {"objective.load_balancing_weight": 0.01},
        "settings": SMALL,
        "seeds": range(2),
    }
    return Ablation(**(fields | changes))


@pytest.fixture
def ablation():
    return declare


@pytest.fixture
def make_plan():
    def make(name="balance", size="full", overrides=(), **changes) -> Plan:
        return plan(name, declare(**changes), size=size, overrides=overrides)

    return make


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def starts(tmp_path, monkeypatch):
    """The file in which the slow trainer, which takes half a second, notes each start."""
    path = tmp_path / "starts"
    path.touch()
    monkeypatch.setenv("STARTS", str(path))
    monkeypatch.setenv("SLOW_S", "0.5")
    return path


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL server; a test that stops it starts it again."""
    if reason := postgresql.missing():
        pytest.skip(reason)
    with postgresql.server() as server:
        yield server


_databases = itertools.count()


@pytest.fixture
def database(postgres):
    """The URL, password included, of a new database."""
    return postgres.create(f"runs{next(_databases)}")


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path):
    """No W&B unless a test asks for it; the default storage; signal handlers as they were."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("ABLATE_SPILL", str(tmp_path / "spill"))
    monkeypatch.delenv("ABLATE_STORAGE", raising=False)
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def slurm(monkeypatch):
    """Slurm as it is told to be: the state of task 0 of job 7, and what it was asked to do."""
    said = {"state": "RUNNING", "restarts": 0, "left": 600.0, "asked": []}

    def call(*command, **options):
        said["asked"].append(command)
        if said.get("away"):
            raise slurm_jobs.SlurmError("socket timed out")
        return ""

    def tasks(**chosen):
        return [Task("7", "0", said["state"], "None", said["restarts"], said["left"], "n1")]

    monkeypatch.setattr(slurm_jobs, "tasks", tasks)
    monkeypatch.setattr(slurm_jobs, "call", call)
    monkeypatch.setattr("sweeps.launch.task.ASK_S", -1.0)
    for place in ("launch.task", "runs.ledger", "search.queue"):
        monkeypatch.setattr(f"sweeps.{place}.RETRY_S", 0.0)
    monkeypatch.setattr(signal, "setitimer", lambda *arguments: None)
    return said
