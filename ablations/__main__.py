"""`ablate`: declare, plan, run, judge, export."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ablations.cli import commands
from ablations.cli.command import INTERRUPTED, Command, Parser
from core.errors import UserError
from core.runtime.child_process import BRIEF_SPINNING
from core.runtime.paths import expanded
from core.runtime.printable import one_line

PATHS = ("name", "config", "target", "cluster", "tokenizer")  # of files or folders, or of something else
USER_MISTAKE, FAILURE = 2, 1


class Version(argparse.Action):
    """Print the version and, where it is known, the commit; then end."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        import importlib.metadata  # with the next, more than the whole of `--help` takes

        from core.records.provenance import commit  # reads git

        found = commit()
        said = f" (commit {found[:12]})" if found else ""
        print(f"{parser.prog} {importlib.metadata.version('moe-diffusion-ablations')}{said}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for a failure at work, or 2 for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    os.environ.update(BRIEF_SPINNING | os.environ)  # before torch is imported
    try:
        return _run(parse(argv))
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
    """Parse a command line; `run` is its command. Raises UserError for one that means nothing."""
    parser = Parser(prog="ablate", description="Ablations of sparse-MoE masked diffusion language models.")
    parser.add_argument("--version", action=Version, nargs=0, help="the version, and the commit where it is known")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in commands.ordered():
        command.add_to(subparsers, with_options=command.name in argv)  # launchers have some, and take time to import
    # DeepSpeed's launcher puts --local_rank=N before every argument; LOCAL_RANK says it too.
    words = [word for word in argv if word != "--debug" and not word.startswith("--local_rank=")]
    arguments, rest = parser.parse_known_args(words)
    arguments.settings = _settings(arguments, rest)
    for name, value in vars(arguments).items():
        if isinstance(value, Path) or (name in PATHS and isinstance(value, str)):
            setattr(arguments, name, type(value)(expanded(str(value))))
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from ablations.cli.refusals import refuse_early  # omegaconf, which `--help` does without

    command: Command = arguments.run
    refuse_early(command, arguments)
    return command.handler_for(arguments.study_kind)(arguments)


def _settings(arguments: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    command = f"ablate {arguments.command}"
    if flags := [word for word in rest if word.startswith("-")]:
        raise UserError(f"unknown option {flags[0]} of {command} (see {command} --help)")
    if rest and not arguments.run.settings:
        raise UserError(f"{command} takes no setting '{rest[0]}'")
    return list(rest)


def _complain(line: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    over = "\r" if status == INTERRUPTED and sys.stderr.isatty() else ""  # over the ^C that terminals echo
    print(f"{over}ablate: {one_line(line)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
