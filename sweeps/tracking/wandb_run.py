"""Runs mirrored to Weights & Biases. A mirror that breaks never breaks the run that it shows."""

import hashlib
import logging
import netrc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from core.config.run import to_dict
from core.records.decoded import Decoded
from core.records.run_record import RunRecord
from sweeps.storage.redaction import without_secrets
from sweeps.studies.plan import Plan, PlannedRun, Sweep

PROJECT = "moe-diffusion-ablations"
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 3.0
LONGEST_NAME = 128
LONGEST_TAG = 64
CELL_PIXELS = 16
# Of the one run that an outer agent or launcher started us for: all of a sweep's runs would be that run. What is of
# the site stays: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL, WANDB_API_KEY, WANDB_DIR.
OF_ONE_RUN = (
    "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM",
    "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_JOB_TYPE", "WANDB_TAGS", "WANDB_NOTES", "WANDB_CONFIG_PATHS", "WANDB_PROGRAM",
    "WANDB_ARGS", "WANDB_RUN_DIR", "WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH", "WANDB_AGENT_REPORT_INTERVAL", "WANDB_SERVICE",
)  # fmt: skip

log = logging.getLogger(__name__)
T = TypeVar("T")


class WandbTracker:
    """One W&B run for one run: its config, curves, final metrics and expert load.

    WANDB_MODE is respected; without it the run is online where there are credentials, else offline (`wandb sync`
    sends it later). Any failure is logged once, ends the mirroring of this run and shows in `status`.
    """

    def __init__(self, plan: Sweep, run: PlannedRun, folder: Path, run_id: str) -> None:
        self._run: Any = None
        self._id, self._state = run_id, "disabled"
        for name in OF_ONE_RUN:
            os.environ.pop(name, None)
        if os.environ.get("WANDB_MODE") == "disabled":  # not even imported: it takes half a second
            return
        self._attempt("start", lambda: self._start(plan, run, folder), INIT_TIMEOUT_S + 5)

    @property
    def status(self) -> dict[str, str]:
        """{"status": "online", "offline", "disabled" or "failed: reason", "id"}."""
        return {"status": self._state, "id": self._id}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send a row. Rows of one step are merged into one."""
        if self._run is not None:
            self._attempt("log", lambda: self._run.log(metrics, step=step))

    def finish(self, record: RunRecord) -> None:
        """Send what is known at the end, and close the W&B run."""
        if self._run is None:
            return
        self._attempt("send the results", lambda: self._send(record), FINISH_TIMEOUT_S)
        if self._run is not None:
            code = int(record.status == "failed")
            self._attempt("finish", lambda: self._run.finish(exit_code=code), FINISH_TIMEOUT_S + 5)
        self._run = None

    def answer(self, found: Sequence[Decoded]) -> None:
        """Send what the trained model answered in each way of decoding, and close the W&B run."""
        if self._run is None:
            return
        said: dict[str, Any] = {}
        for one in found:
            told: dict[str, Any] = {"reason": one.reason}
            if one.reason is None:
                marks = "".join(one.right)
                told = {"exact_match": marks.count("1") / len(marks), "calls": one.calls, "seconds": one.seconds}
            said |= {f"decoded/{one.decoder}/{name}": value for name, value in told.items()}
        self._attempt("send the answers", lambda: self._run.summary.update(said), FINISH_TIMEOUT_S)
        if self._run is not None:
            self._attempt("finish", lambda: self._run.finish(exit_code=0), FINISH_TIMEOUT_S + 5)
        self._run = None

    def leave(self) -> None:
        """Let go of the W&B run of a training that was stopped: whoever goes on with it resumes it by its id.

        Slurm signals all processes of a job: W&B's own may have ended first, with everything that was logged before.
        """
        if self._run is None:
            return
        mirrored, self._run = self._run, None

        def leave() -> None:
            mirrored.mark_preempting()
            mirrored.finish(exit_code=1)

        try:
            _bounded(leave, LEAVE_TIMEOUT_S)
        except Exception as error:
            log.info("W&B was gone already: %s", without_secrets(f"{type(error).__name__}: {error}"))

    def drop(self) -> None:
        """Let go of the W&B run without another word: another process trains the run, and may go on with this one's.

        Finishing it would say that it has ended. Its service process is killed instead, as if this process had been.
        """
        if self._run is None:
            return
        mirrored, self._run = self._run, None
        try:
            import wandb

            ours = wandb.setup()
            ours.remove_active_run(mirrored)
            ours._connection._proc._process.kill()  # type: ignore[union-attr]
        except Exception as error:
            log.info("W&B was not to be stopped: %s", without_secrets(f"{type(error).__name__}: {error}"))
        _reset()

    def _start(self, plan: Sweep, run: PlannedRun, folder: Path) -> None:
        import wandb

        known = wandb.setup().settings
        mode: Any = os.environ.get("WANDB_MODE") or known.mode
        if mode == "online" and "WANDB_MODE" not in os.environ and not has_credentials(known.base_url, known.api_key):
            mode = "offline"
        tags = [plan.name, plan.size, f"seed {run.seed}", *(["control"] if run.arm == plan.design.control else [])]
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            id=self._id,
            project=os.environ.get("WANDB_PROJECT") or known.project or PROJECT,
            group=plan.study_name[:LONGEST_NAME],
            job_type=run.arm[:LONGEST_NAME],
            name=run.label[-LONGEST_NAME:],
            tags=[tag[:LONGEST_TAG] for tag in tags],
            config=to_dict(run.config)
            | {"arm": run.arm, "factors": dict(run.settings), "run_hash": run.run_hash, "data": _data(run)},
            dir=folder,
            mode=mode,
            resume="allow",  # a run that was stopped goes on in its own W&B run
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                console="off",
                silent=True,
                disable_code=True,
                save_code=False,
                x_save_requirements=False,  # parsing every installed package's metadata was 9/10 of a run's start
            ),
        )
        self._state = "disabled" if self._run.disabled else "offline" if self._run.offline else "online"

    def _send(self, record: RunRecord) -> None:
        summary: dict[str, Any] = {"status": record.status, "reason": record.reason, "parameters": record.parameters}
        summary["alarms"] = [alarm["kind"] for alarm in record.alarms]
        if record.before:
            summary["before"] = record.before
        if record.notes:
            summary["notes"] = record.notes
        summary["provenance"] = record.provenance  # packages among it
        if record.expert_load.get("load"):
            panels = _load_panels(record.expert_load) | _timestep_panel(record.routing)
            self._run.log(panels, step=int(record.expert_load["step"][-1]))
        self._run.summary.update({**record.metrics, **summary, "flops": record.flops, "tokens": record.tokens})

    def _attempt(self, what: str, action: Callable[[], None], limit_s: float | None = None) -> None:
        try:
            action() if limit_s is None else _bounded(action, limit_s)
        except Exception as error:
            reason = without_secrets(f"could not {what}: {type(error).__name__}: {error}")
            log.warning("W&B %s; the run goes on without it", reason)
            self._run, self._state = None, f"failed: {reason}"
            _reset()


def run_id(run: PlannedRun, folder_id: str, attempt: int) -> str:
    """A W&B run id: the same for the same attempt at the same run, unlike any other's."""
    content = "\0".join((run.run_hash, run.fingerprint, folder_id, str(attempt)))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def tell_answers(plan: Plan, run: PlannedRun, folder: Path, found: Sequence[Decoded]) -> None:
    """Send a finished run's answers to the W&B run that mirrors it, where there is one: online, or for `ablate sync`."""
    mirrors = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    if mirrors and found:
        WandbTracker(plan, run, folder, mirrors[-1].name.rpartition("-")[2]).answer(found)


def _data(run: PlannedRun) -> dict[str, Any]:
    return to_dict(run.config)["data"] | {"fingerprint": run.fingerprint}


def has_credentials(base_url: str, api_key: str | None) -> bool:
    """True if W&B's own look-up would find a key for a server, without asking anybody."""
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    names = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(os.path.expanduser(name)) for name in names):
        if path.is_file():
            return netrc.netrc(path).authenticators(urlsplit(base_url).netloc) is not None
    return False


def _load_panels(expert_load: Mapping[str, Any]) -> dict[str, Any]:
    """The last validation's load as a picture (layers by experts), and all of them as a table."""
    import wandb

    last_LE = np.array(expert_load["load"][-1])
    title = f"expert load at step {expert_load['step'][-1]:g}: layers (rows) by experts, up to {last_LE.max():.1%}"
    rows = [
        [step, layer, expert, share]
        for step, load_LE in zip(expert_load["step"], expert_load["load"], strict=True)
        for layer, load_E in enumerate(load_LE)
        for expert, share in enumerate(load_E)
    ]
    table = wandb.Table(columns=["step", "layer", "expert", "load"], data=rows)
    return {"expert_load/heatmap": _picture(last_LE, title), "expert_load/table": table}


def _timestep_panel(routing: Mapping[str, Any]) -> dict[str, Any]:
    """The final load by timestep as a picture: for each layer experts by bins of t, visible and masked tokens apart."""
    if "load_by_timestep" not in routing:
        return {}
    load_STME = np.array(routing["load_by_timestep"])
    gap = np.full((1, 2 * load_STME.shape[1] + 1), np.nan)
    strips = [
        np.hstack([load_TME[:, 0].T, np.full((load_TME.shape[2], 1), np.nan), load_TME[:, 1].T])
        for load_TME in load_STME
    ]
    title = (
        "expert load by timestep: layer under layer, in each the experts (rows) by t from 0 to 1; left visible, right masked "
        f"tokens; up to {np.nanmax(load_STME):.1%}"
    )
    return {
        "routing/load_by_timestep": _picture(np.vstack([row for strip in strips for row in (strip, gap)][:-1]), title)
    }


def _picture(values_RC: np.ndarray, title: str) -> Any:
    """Shares as squares from dark (0) to bright (the largest), gaps white. Pixels: a figure takes a third of a second."""
    import wandb
    from matplotlib import colormaps

    shade_RC = values_RC / max(float(np.nanmax(values_RC)), 1e-12)
    colour_RC3 = np.where(np.isnan(shade_RC)[..., None], 1.0, colormaps["viridis"](np.nan_to_num(shade_RC))[..., :3])
    pixels = np.kron(colour_RC3, np.ones((CELL_PIXELS, CELL_PIXELS, 1)))
    return wandb.Image((255 * pixels).round().astype(np.uint8), caption=title)


def _bounded(action: Callable[[], None], limit_s: float) -> None:
    """Do it, but stop waiting after `limit_s`: W&B's own time limits cover its servers, not a stuck disk."""
    failures: list[Exception] = []

    def work() -> None:
        try:
            action()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True, name="wandb")
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {limit_s:g} s")
    if failures:
        raise failures[0]


def _reset() -> None:
    """Let go of W&B's service process, which stays unusable once it broke: the next run starts another."""
    try:
        import wandb

        _bounded(wandb.teardown, 5.0)
    except Exception as error:
        log.debug("W&B teardown: %s", type(error).__name__)
