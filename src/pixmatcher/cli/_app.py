"""The Typer application, the registration of commands, and what happens when one fails."""

from __future__ import annotations

import functools
import gc
import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from .._text import printable
from ..errors import PixMatcherError

logger = logging.getLogger("pixmatcher.cli")

INDEX, SEARCH, MAINTENANCE = "Index", "Search", "Look after a collection"
EVALUATION, DOWNLOADS, SERVICE = "Evaluate", "Models and data sets", "Serve other programs"
"""The groups of commands in the help."""

_EXAMPLES = (
    "pixmatcher index ~/Pictures",
    'pixmatcher search "a cat looking at you" -c ~/Pictures',
    "pixmatcher info -c ~/Pictures",
    "pixmatcher evaluate --captions captions.csv -c ~/Pictures",
    "pixmatcher models list",
)
"""An example of each group of commands, for the help of the program."""


def _help_examples(*examples: str) -> str:
    """Return examples as the end of a help text, each on its line."""
    return "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", *examples])


app = typer.Typer(
    name="pixmatcher",
    help="Find your own images by example or by sentence, offline and in milliseconds.",
    epilog=_help_examples(*_EXAMPLES),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="List, download and export encoders.", epilog=_help_examples("pixmatcher models list"))
app.add_typer(models_app, name="models", rich_help_panel=DOWNLOADS)
datasets_app = typer.Typer(
    help="Download public data sets to index.", epilog=_help_examples("pixmatcher datasets list")
)
app.add_typer(datasets_app, name="datasets", rich_help_panel=DOWNLOADS)
tokens_app = typer.Typer(
    help="Manage who may call the service.", epilog=_help_examples("pixmatcher tokens list --file tokens.txt")
)
app.add_typer(tokens_app, name="tokens", rich_help_panel=SERVICE)

_P = ParamSpec("_P")
_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # Typer exports no name for it

_TEXT_LIKE_OPTION = re.compile(r"-(?:-?[^\s=]*\s|\d)")
"""Matches an argument that begins as an option, but with a space or a number in it, as no option has."""

VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        help="Show on standard error what happens; -vv shows more.",
        show_default=False,
    ),
]


def run() -> None:
    """Run the application: parse the arguments of the process, and end it with an exit code."""
    _repair_streams()
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "pixmatcher"
        message = error.format_message().rstrip(".")
        see = f"See `{command} --help`."
        if message.startswith("No such option") and any(map(_TEXT_LIKE_OPTION.match, sys.argv[1:])):
            see = "If it is a text to search for, put -- before it."
        fail(f"{message}{'' if message.endswith('?') else '.'} {see}", 2)
    finally:
        # At exit Python looks for reference cycles among all objects, which takes as long as a search. PyTorch
        # needs that.
        if "torch" not in sys.modules:
            gc.freeze()
    raise SystemExit(status)


def _repair_streams() -> None:
    """Open the standard streams that the caller has closed, and escape the characters that they cannot show."""
    # In this order each stream gets its own number, so that no file that is opened later can have it.
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def command(
    name: str, group: typer.Typer = app, *, example: str, panel: str | None = None
) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Return a decorator that registers a function as a command.

    Its help ends with the example, and the help of the program shows it in the panel. The command has the option `-v`.
    Every error that a user can cause ends in one line and an exit code.
    """

    def register(function: Callable[_P, None]) -> Callable[_P, None]:
        add = group.command(name, epilog=_help_examples(example), rich_help_panel=panel)
        add(_with_verbose_option(_with_error_messages(function)))
        return function

    return register


def _with_error_messages(function: Callable[_P, None]) -> Callable[_P, None]:
    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except PixMatcherError as error:
            _fail_without_current_folder(error)
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            _discard_output()
        except KeyboardInterrupt:
            fail("stopped. What is done is kept: run the same command again to continue.", 130)
        except MemoryError:
            fail("there is not enough memory: close other programs and run the same command again.", 1)
        except OSError as error:
            _fail_without_current_folder(error)
            _discard_output()
            fail(f"the operating system reports: {error}. Fix the problem and run the same command again.", 1)

    return guarded


def _fail_without_current_folder(error: BaseException | None) -> None:
    """End the process with the message for a deleted current folder, if that is why the error was raised."""
    try:
        os.getcwd()
        return
    except FileNotFoundError:
        pass
    while error is not None:
        if isinstance(error, FileNotFoundError):
            fail("The current folder does not exist any more: change to another one with cd.", 2)
        error = error.__cause__ or error.__context__


def _with_verbose_option(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with one more parameter, as Typer reads it: the option `-v`."""
    signature = inspect.signature(function, eval_str=True)
    last = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VerboseOption)
    parameters = [*signature.parameters.values(), last]

    @functools.wraps(function)
    def verbose_function(*args: Any, verbose: int = 0, **kwargs: Any) -> None:
        _show_verbose_log(verbose)
        function(*args, **kwargs)

    verbose_function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    verbose_function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verbose_function


def _show_verbose_log(verbosity: int) -> None:
    if verbosity:
        from .._logging import show_verbose_log

        show_verbose_log(verbosity)


def fail(message: str, exit_code: int) -> NoReturn:
    """Print an error message in one line and end the process."""
    logger.debug("the command failed", exc_info=sys.exc_info()[0] is not None)
    print(f"Error: {printable(message)}", file=sys.stderr)
    raise SystemExit(exit_code)


def _discard_output() -> None:
    """Discard the output that is not printed yet; Python would report an error when it flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(requested: bool) -> None:
    if requested:
        from .._version import __version__

        typer.echo(f"pixmatcher {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: VerboseOption = 0,
) -> None:
    _show_verbose_log(verbose)
