"""The entry point: runs a verb and turns whatever it raises into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Sequence

import typer

from flatsat.errors import FlatSatError
from flatsat.harness.cli.app import app
from flatsat.harness.cli.session import INTERRUPTED, WorkInterruptedError, say

BROKEN_PIPE = 141
INFRASTRUCTURE = 3
USAGE = 2
_GLOBAL_FLAGS = ("--debug", "--quiet")
_GLOBAL_VALUES = ("--lab",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit code.

    0 pass, 1 gate failed or regression, 2 usage or configuration, 3 infrastructure,
    4 inconclusive; 130 interrupted, 141 when the reader of a pipe went away.
    """
    ordered = globals_first(arguments)
    debug = "--debug" in ordered
    if not debug:
        warnings.simplefilter("ignore")
    try:
        code = _invoke(ordered)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        _silence_stdout()
        # Verbs return their code: only typer and rich exit, after a completion script with 0 and
        # when the reader of a pipe is gone with 1.
        return 0 if isinstance(error, SystemExit) and not error.code else BROKEN_PIPE
    except BaseException as error:
        if debug and not isinstance(error, KeyboardInterrupt):
            import traceback

            traceback.print_exc()
        with contextlib.suppress(OSError):
            return _report(error)
        return INFRASTRUCTURE
    return code


def globals_first(arguments: Sequence[str]) -> list[str]:
    """Move the global options before the verb, so that they may stand anywhere."""
    first: list[str] = []
    rest: list[str] = []
    tokens = list(arguments)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            rest += [token, *tokens]
            break
        if token in _GLOBAL_FLAGS or token.startswith(tuple(f"{name}=" for name in _GLOBAL_VALUES)):
            first.append(token)
        elif token in _GLOBAL_VALUES and tokens:
            first += [token, tokens.pop(0)]
        else:
            rest.append(token)
    return first + rest


def _invoke(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(app)
    code = command.main(list(arguments), prog_name="flatsat", standalone_mode=False)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _report(error: BaseException) -> int:
    """Say what went wrong in one line, and how to mend it in another; return the exit code."""
    message, hint, code = _explain(error)
    if not message:
        return code
    say(message, style="yellow" if code == INTERRUPTED else "bold red")
    if hint:
        say(f"hint: {hint}")
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        _silence_stdout()
    return code


def _explain(error: BaseException) -> tuple[str, str | None, int]:
    if isinstance(error, BaseExceptionGroup):
        return _explain(_gravest(error))
    if isinstance(error, WorkInterruptedError):
        return f"interrupted; {error.hint}", None, INTERRUPTED
    if isinstance(error, FlatSatError):
        return f"error: {error.message}", error.hint, error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", None, INTERRUPTED
    if hasattr(error, "format_message"):
        return _explain_usage(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" {error.filename}" if error.filename else ""
        hint = "free some space, then go on with --resume"
        return f"error: can't write{where}: {os.strerror(error.errno)}", hint, INFRASTRUCTURE
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}", None, INFRASTRUCTURE
    if isinstance(error, MemoryError):
        return "error: out of memory", "close other programs, or measure less", INFRASTRUCTURE
    return (
        f"error: unexpected {type(error).__name__}: {error}",
        "this is a fault of FlatSat; run again with --debug and report what it prints",
        INFRASTRUCTURE,
    )


def _explain_usage(error: BaseException) -> tuple[str, str | None, int]:
    """Return what to say of a command line that can't be read."""
    text = str(getattr(error, "format_message")()).strip()  # noqa: B009
    if not text or type(error).__name__ == "NoArgsIsHelpError":
        return "", None, USAGE  # The help was shown in place of an error.
    context = getattr(error, "ctx", None)
    verb = "flatsat" if context is None else context.command_path
    first = " ".join(text.split()).rstrip(".").replace("Input should", "must")
    return f"error: {first[:1].lower()}{first[1:]}", f"see: {verb} --help", USAGE


def _gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error of a group of concurrent tasks that the user should read."""
    errors = list(_flat(group))
    ours = [error for error in errors if isinstance(error, FlatSatError)]
    return (ours or errors)[0]


def _flat(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [inner for member in error.exceptions for inner in _flat(member)]
    return [error]


def _silence_stdout() -> None:
    """Keep the interpreter from flushing into a broken stream when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
