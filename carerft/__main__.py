"""The program `carerft`, and `python -m carerft`. Ctrl-C ends it in one line, also while modules are imported."""

import sys


def main() -> int:
    """Run the command that sys.argv names. Returns the exit status."""
    try:
        from carerft import cli

        return cli.main()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
