"""Where the archive begins: reads the arguments and serves one session on standard input."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zipfile
from typing import List, Optional

from .console import Console
from .line import Line, take_stdio
from .processes import Launcher
from .reliable_line import ReliableLine
from .store import Store, digest_of
from .supervisor import Supervisor, serve


def unpack(archive: str, store: Store) -> str:
    """Unpack the agent's modules once per version and return their folder.

    Workers import them from files, since modules in a zip archive are compiled anew each time.
    """
    sha = digest_of(archive)
    folder = os.path.join(store.root, "agent", sha)
    if not os.path.isdir(folder):
        fresh = "%s.%d" % (folder, os.getpid())
        with zipfile.ZipFile(archive) as members:
            members.extractall(fresh)
        # A name that outlives a power cut must not stand for files that did not.
        os.sync()
        try:
            os.rename(fresh, folder)
        except OSError:
            # Another agent was quicker.
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def main(argv: Optional[List[str]] = None) -> int:
    """Run the supervisor; the archive's `__main__` calls this."""
    parser = argparse.ArgumentParser(prog="flatsat-agent")
    parser.add_argument("--store", required=True, help="the agent's own folder on this board")
    parser.add_argument(
        "--site",
        action="append",
        default=[],
        metavar="RUNTIME=FOLDER",
        help="where a runtime's modules lie, if the interpreter doesn't find them by itself",
    )
    parser.add_argument(
        "--silence",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="end after so long without a message from the host, while no job runs",
    )
    parser.add_argument(
        "--arq",
        type=int,
        metavar="NUMBER",
        help="the line may lose bytes: repeat what got lost; the number is this session's",
    )
    arguments = parser.parse_args(argv)
    fd_in, fd_out = take_stdio()
    console = Console(os.ttyname(fd_in)) if os.isatty(fd_in) else None
    if console is not None:
        fd_in = fd_out = console.fd
    line = Line(fd_in, fd_out, arguments.silence)
    if arguments.arq is not None:
        line = ReliableLine(fd_in, fd_out, arguments.silence, arguments.arq)
    try:
        store = Store(arguments.store)
        code = unpack(os.path.abspath(sys.argv[0]), store)
        launcher = Launcher(code, dict(entry.split("=", 1) for entry in arguments.site))
        agent = os.path.basename(code)
        return serve(Supervisor(line, store, launcher, agent, arguments.silence))
    finally:
        line.close()
        if console is not None:
            console.close()
