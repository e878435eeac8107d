"""The command line, one file per command: add(commands) declares it, run(args) carries it out.

Their modules import nothing heavy at the top, so that --help answers at once.
"""

import argparse
import io
import os
import sys

from . import ablate, app, deblur, evaluate, pack, paper, photographs, publish, train

COMMANDS = (deblur, app, pack, train, evaluate, paper, ablate, photographs, publish)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="tinymsg",
        description="Deblur photographs with structure-guided diffusion, train and evaluate it.",
        epilog="'tinymsg COMMAND --help' explains one command.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: list[str] | None = None, top: argparse.ArgumentParser | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 some files failed, 2 a mistake in the call, 130 stopped.

    A mistake is a ValueError, here and in the library: one sentence, printed without its traceback, which
    TINYMSG_TRACEBACK=1 in the environment brings back.
    """
    args = (top or parser()).parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # which cannot print every file's name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nstopped; the files that were finished are whole", file=sys.stderr)
        return 130
    except ValueError as error:
        if "TINYMSG_TRACEBACK" in os.environ:
            raise
        said = str(error)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (RuntimeError, MemoryError) as error:
        from ..machine import out_of_memory

        if not out_of_memory(error):
            raise
        said = "memory ran out; take smaller or fewer pictures, or another --device"
    print(f"tinymsg: {said}", file=sys.stderr)
    return 2
