"""Command line: tinymsg COMMAND, or python -m tinymsg COMMAND; --help after any tells more."""

import sys

from . import cli
from .cli.allocator import restart_with_allocator


def main() -> int:
    """What `tinymsg` and `python -m tinymsg` start."""
    restart_with_allocator("-m", "tinymsg", *sys.argv[1:])
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
