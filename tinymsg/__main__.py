"""Command line: python -m tinymsg COMMAND; --help after any tells more."""

import argparse
import os
import sys

from .commands import ablate, deblur, evaluate, pack, paper, publish, shift, steps, train
from .commands.shared import UserError

# glibc gives freed blocks of this size back to the system at once, and asks again at the next layer: keeping
# them made one residual block 1.6 times faster on the CPU. In pages of 2 MB instead of 4 kB a training step takes
# another tenth less time.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

COMMANDS = (deblur, pack, train, evaluate, paper, ablate, steps, shift, publish)


def use_allocator() -> bool:
    """Put the allocator's settings into the environment, for the processes that start from here; not over settings of the user's.

    Returns: whether they are new there. No other system than Linux has them.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return False
    os.environ.update(ALLOCATOR)
    return True


def restart_with_allocator(*command: str) -> None:
    """Go on as `python COMMAND` with the allocator's settings: malloc reads them when a process starts, and only then."""
    if use_allocator():
        os.execv(sys.executable, [sys.executable, *command])


def parser() -> argparse.ArgumentParser:
    """The whole command line. Imports nothing heavy, so that --help answers at once."""
    top = argparse.ArgumentParser(
        prog="python -m tinymsg",
        description="Deblur photographs with structure-guided diffusion, train and evaluate it.",
        epilog="'python -m tinymsg COMMAND --help' explains one command.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 some files failed, 2 a mistake in the call."""
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except UserError as error:
        print(f"tinymsg: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from .processes import out_of_memory

        if not out_of_memory(error):
            raise
        print(
            "tinymsg: memory ran out; take smaller pictures, or fewer at a time, or another --device", file=sys.stderr
        )
        return 2


if __name__ == "__main__":
    restart_with_allocator("-m", "tinymsg", *sys.argv[1:])
    sys.exit(main())
