"""`ablate`: declare, plan, run, judge, export."""

import argparse
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ablations.cli.options import (
    bench_options,
    export_options,
    layout_options,
    positive,
    sample_options,
    share,
    slurm_options,
    whole,
    workers,
)
from core.errors import UserError
from core.runtime.child_process import BRIEF_SPINNING
from core.runtime.paths import expanded
from core.runtime.printable import one_line

PATHS = ("name", "config", "target", "cluster", "tokenizer")  # of files or folders, or of something else
USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


# Where a command's function is; the rest are in commands.
ROOMS = {
    "train": "train", "describe": "describe", "import": "import_hf", "data": "data", "storage": "storage",
    "verify": "verify", "probe": "probe", "status": "status", "cancel": "status", "retry": "retry",
    "sample": "sample", "bench": "bench", "decode": "decode", "confirm": "confirm", "export": "export",
    "dashboard": "dashboard", "sync": "sync", "layout": "layout",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UserErrors: one line, like every other mistake."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)  # --seed is no --seeds

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class Version(argparse.Action):
    """Print which version this is, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        print(f"{parser.prog} {importlib.metadata.version('moe-diffusion-ablations')}{_commit()}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a failure at work, or 2 for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    os.environ.update(BRIEF_SPINNING | os.environ)  # before torch is imported
    try:
        arguments = parse(argv)
        return arguments.handler(arguments)
    except UserError as error:
        return _complain(str(error), USER_MISTAKE, debug)
    except KeyboardInterrupt as error:
        line = str(error) or "interrupted; what was finished is kept, and the same command goes on"
        return _complain(line, INTERRUPTED, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader closed the pipe: not an error
        return 0
    except OSError as error:
        if error.filename is None:
            return _complain(f"{type(error).__name__}: {error.strerror or error} (--debug shows where)", FAILURE, debug)
        return _complain(f"{error.filename}: {error.strerror}", FAILURE, debug)  # what is wrong is there, not here
    except MemoryError:
        return _complain("there isn't enough memory for this: one of its numbers is too large", FAILURE, debug)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        return _complain(f"{type(error).__name__}: {first} (--debug shows where)", FAILURE, debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for. Raises UserError for one that means nothing."""
    # DeepSpeed's launcher puts --local_rank=N before every argument; LOCAL_RANK says it too.
    own = [argument for argument in argv if argument != "--debug" and not argument.startswith("--local_rank=")]
    arguments, rest = _parser().parse_known_args(own)
    arguments.settings = _settings(arguments, rest)
    for name, value in vars(arguments).items():
        if isinstance(value, Path) or (name in PATHS and isinstance(value, str)):
            setattr(arguments, name, type(value)(expanded(str(value))))
    return arguments


def _commit() -> str:
    from core.records.provenance import commit  # pathlib and hashlib are all that it needs

    found = commit()
    return f" (commit {found[:12]})" if found else ""


def _complain(line: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    over = "\r" if status == INTERRUPTED and sys.stderr.isatty() else ""  # over the ^C that terminals echo
    print(f"{over}ablate: {one_line(line)}", file=sys.stderr)
    return status


def _settings(arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    flags = [argument for argument in rest if argument.startswith("-")]
    if flags:
        raise UserError(
            f"unknown option {flags[0]} of ablate {arguments.command} (see ablate {arguments.command} --help)"
        )
    if rest and not arguments.takes_settings:
        raise UserError(f"ablate {arguments.command} takes no setting '{rest[0]}'")
    return list(rest)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ablate", description="Ablations of sparse-MoE masked diffusion language models.")
    parser.add_argument("--version", action=Version, nargs=0, help="the version, and the commit where it is known")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    _command(commands, "list", "the agenda and the verdicts so far", json=True).add_argument(
        "--names", action="store_true", help="only 'name size', one a line"
    )
    plan = _command(
        commands, "plan", "arms, cost, and the smallest effect detectable", name=True, settings=True, json=True
    )
    plan.add_argument("--no-calibration", action="store_true", help="don't time a few training steps")
    run = _command(commands, "run", "train what isn't recorded yet", name=True, settings=True)
    run.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    run.add_argument(
        "--until-decided", action="store_true", help="buy seeds block by block, and no more for what is decided"
    )
    run.add_argument(
        "--block",
        type=positive,
        metavar="N",
        help="with --until-decided: seeds between looks (default: a tenth, or 2)",
    )
    for command in (plan, run):
        command.add_argument("--exploratory", action="store_true", help="though the design can't reach significance")
    decode = _command(commands, "decode", "decode the trained models in the declared ways", name=True, settings=True)
    status = _command(
        commands, "status", "where a sweep stands: its runs, its jobs, the time left", name=True, json=True
    )
    status.add_argument("--watch", action="store_true", help="show it until no run is queued or in training")
    _command(commands, "cancel", "stop a sweep: its Slurm jobs, and its processes on this machine", name=True)
    retry = _command(commands, "retry", "queue failed and lost runs again", name=True, settings=True)
    retry.add_argument("--failed", action="store_true", help="set records of failure aside and queue their runs")
    retry.add_argument("--lost", action="store_true", help="only queue runs whose worker died or was stopped")
    retry.add_argument("--seeds", type=positive, metavar="N", help="as `run` was given")
    confirm = _command(commands, "confirm", "the winner beside its control on fresh seeds", name=True)
    confirm.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    for command in (run, retry, confirm):
        slurm_options(command)
    for command in (plan, run, decode, confirm):
        command.add_argument(
            "--workers",
            type=workers,
            metavar="N|auto",
            help="processes (default: one per GPU or core; auto: as measured)",
        )
        said = "how many fresh seeds" if command is confirm else "seeds 0..N-1 instead of the declared ones"
        command.add_argument("--seeds", type=positive, metavar="N", help=said)
    report = _command(commands, "report", "the verdict table and report.html", name=True, json=True)
    report.add_argument(
        "--files", type=Path, metavar="FOLDER", help="tables as CSV, Markdown and LaTeX, figures as SVG, PNG and PDF"
    )
    verify = _command(commands, "verify", "what of the records can't be trusted", name=True, json=True)
    won = "the winning arm as a config with its evidence, or its weights"
    export_options(_command(commands, "export", won, name=True, settings=True))
    dashboard = _command(commands, "dashboard", "a live page of a sweep, or its W&B workspace", name=True, json=True)
    dashboard.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT",
        help="save W&B's workspace and report where its runs are mirrored to instead",
    )
    for command in (run, status, retry, verify, confirm, dashboard):
        command.add_argument("--storage", metavar="URL", help="Optuna storage (default: $ABLATE_STORAGE, or a journal)")
    dashboard.add_argument("--port", type=positive, metavar="N", help="of the page, on 127.0.0.1 (default: a free one)")
    _command(commands, "sync", "send what was trained offline to W&B, once", name=True, json=True)
    train = _command(commands, "train", "one run from a config file or preset", settings=True)
    train.add_argument(
        "config", metavar="CONFIG", help="a preset, or a YAML config, such as an exported one; or one with stages"
    )
    train.add_argument("--dry-run", action="store_true", help="check shapes, schedule, data and layout; train nothing")
    train.add_argument("--cluster", metavar="CLUSTER", help="with --dry-run: plan for it, such as 64xH100-80G")
    train.add_argument("--stage", metavar="NAME", help="of a config with stages: train up to this one")
    train.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="processes (trainer.strategy=deepspeed)"
    )
    probe = _command(commands, "probe", "does expert choice depend on the timestep", settings=True, json=True)
    probe.usage = "ablate probe routing|lengths RUN|NAME [options] [data.key=value ...]"
    probe.add_argument(
        "kind", choices=("routing", "lengths"), metavar="WHAT", help="routing, or lengths: the NELBO at others"
    )
    probe.add_argument("name", metavar="RUN|NAME", help="a run's or imported model's folder, or a recorded ablation")
    probe.add_argument("--size", metavar="SIZE", help="the ablation's edition (default: full)")
    probe.add_argument("--sequences", type=positive, default=128, metavar="N", help="held-out ones (default: 128)")
    probe.add_argument("--timesteps", type=positive, default=8, metavar="N", help="of each sequence (default: 8)")
    probe.add_argument(
        "--lengths",
        type=positive,
        nargs="+",
        metavar="N",
        help="of sequences (default: doublings from 8, to twice its own)",
    )
    sample_options(_command(commands, "sample", "decode with a model, watching tokens being fixed", json=True))
    bench_options(_command(commands, "bench", "what decoding costs, block after block or token after token", json=True))
    bring = _command(commands, "import", "a Hugging Face model as a config and weights")
    bring.add_argument("kind", choices=("hf",), metavar="hf", help="Hugging Face safetensors with a config.json")
    bring.add_argument("path", type=Path, metavar="PATH", help="its folder")
    bring.add_argument("--to", type=Path, metavar="FOLDER", help="where to (default: DIR/imported/NAME)")
    bring.add_argument(
        "--mask-id", type=whole, metavar="N", help="the mask's token (default: the file's mask_token_id)"
    )
    bring.add_argument("--eos-id", type=whole, metavar="N", help="the end token (default: the file's eos_token_id)")
    bring.add_argument("--dtype", choices=("fp32", "bf16"), help="store the weights so (default: as they are)")
    data = _command(commands, "data", "fetch text; turn text into token shards")
    data.usage = "ablate data get NAME | ablate data tokenize CORPUS [options]"
    data.add_argument("verb", choices=("get", "tokenize"), metavar="get|tokenize", help="what to do")
    data.add_argument("name", metavar="NAME", help="get: shakespeare; tokenize: a text corpus, such as text:FOLDER")
    data.add_argument("--vocab-size", type=positive, default=8192, metavar="N", help="of the BPE (default: 8192)")
    data.add_argument("--to", type=Path, metavar="FOLDER", help="of the shards (default: DIR/tokens/CORPUS-N)")
    data.add_argument(
        "--held-out-share", type=share, metavar="X", help="of the data (default: by files' names, else about 0.1)"
    )
    describe = _command(commands, "describe", "parameters, FLOPs and shapes of a config", settings=True, json=True)
    describe.add_argument("config", metavar="CONFIG", help="a preset, such as llada_moe_7b_a1b, or a YAML config")
    layout_options(
        _command(commands, "layout", "the fastest layout on a cluster, and its cost", settings=True, json=True)
    )
    serve = _command(commands, "storage", "serve a database to workers over gRPC")
    serve.usage = "ablate storage serve [options]"
    serve.add_argument("verb", choices=("serve",), metavar="serve", help="answer until it is ended")
    serve.add_argument("--storage", metavar="URL", help="the database (default: $ABLATE_STORAGE)")
    serve.add_argument("--host", default="127.0.0.1", metavar="HOST", help="to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=positive, default=13000, metavar="N", help="to listen on (default: 13000)")
    _command(commands, "doctor", "what this machine has and what that means", json=True)
    return parser


def _command(
    commands: argparse._SubParsersAction,
    verb: str,
    text: str,
    *,
    name: bool = False,
    settings: bool = False,
    json: bool = False,
) -> argparse.ArgumentParser:
    usage = f"ablate {verb}{' NAME' if name else ''}{' [options] [key=value ...]' if settings else ' [options]'}"
    command = commands.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.", usage=usage)
    command.set_defaults(handler=_lazy(verb), takes_settings=settings)
    command.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")
    if name:
        command.add_argument("name", metavar="NAME", help="a question on the agenda, or a .py file that declares one")
        command.add_argument("--size", metavar="SIZE", help="an edition that the ablation declares (default: full)")
    if json:
        command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _lazy(verb: str) -> Callable[[argparse.Namespace], int]:
    """The command's function, imported when it is called: torch takes seconds, `--help` shouldn't."""

    def handler(arguments: argparse.Namespace) -> int:
        importlib.import_module("ablations.cli.refusals").refuse_early(arguments)
        module = importlib.import_module(f"ablations.cli.{ROOMS.get(verb, 'run')}")
        return getattr(module, f"run_{verb}")(arguments)

    return handler


if __name__ == "__main__":
    sys.exit(main())
