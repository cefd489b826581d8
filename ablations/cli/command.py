"""Command: a command of `ablate`, with its help, its options and its handler."""

import argparse
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ablations.cli.kinds import module_of
from core.errors import UserError

INTERRUPTED = 130  # exit status after Ctrl-C, as shells report it

Handler = Callable[[argparse.Namespace], int]
Check = Literal["plan", "runs", "records", "any size", "folder", "out"]


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are UserErrors: one line, like every other mistake."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)  # --seed is no --seeds

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class Command:
    """A command of `ablate`: the COMMAND of a file in ablations/cli/commands.

    help: what it does (default: by the first line of its file, "`ablate NAME`: HELP."). options: adds the command's own
        options. study, settings, json: it takes NAME and --size; key=value; --json.
    handler: takes the parsed arguments and returns the exit status; or its name, imported when the command runs (default:
        "ablations.cli.NAME:run_NAME", or the file of that name of the study's kind, see ablations.cli.kinds).
    checks: mistakes that are refused before the handler is imported, beside another declaration's folder of runs: "plan": the
        study can be planned with these settings; "runs": it has been run; "records": it has records; "any size": where it was
        run in several sizes, the first will do; "folder": a run's folder may stand in place of NAME; "out": --out is no file.
    changes: edits of the declaration since it was run are noted on standard error, shown by the handler, or ignored.
    """

    name: str
    help: str = ""
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    handler: Handler | str = ""
    study: bool = False
    settings: bool = False
    json: bool = False
    usage: str = ""
    checks: tuple[Check, ...] = ()
    changes: Literal["noted", "shown", "ignored"] = "noted"

    def add_to(
        self, commands: "argparse._SubParsersAction[Any]", *, with_options: bool = True
    ) -> argparse.ArgumentParser:
        """Add the command's parser to those of `ablate`, and return it."""
        usage = f"{self.name}{' NAME' if self.study else ''} [options]{' [key=value ...]' if self.settings else ''}"
        parser: argparse.ArgumentParser = commands.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[:1].upper()}{self.help[1:]}.",
            usage=f"ablate {self.usage or usage}",
        )
        parser.set_defaults(run=self)
        parser.add_argument(
            "--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)"
        )
        if self.study:
            parser.add_argument("name", metavar="NAME", help="a study in ablations/, or a .py file that declares one")
            parser.add_argument("--size", metavar="SIZE", help="a declared size of the study (default: full)")
        if self.json:
            parser.add_argument("--json", action="store_true", help="print JSON")
        if with_options:
            self.options(parser)
        return parser

    def handler_for(self, kind: str) -> Handler:
        """The function that carries the command out for a kind of study; empty: for none. Imports it."""
        if not self.handler:
            handler: Handler = getattr(module_of(kind if self.study else "", self.name), f"run_{self.name}")
            return handler
        return pkgutil.resolve_name(self.handler) if isinstance(self.handler, str) else self.handler
