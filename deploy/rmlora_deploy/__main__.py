"""Run the command line: ``python -m rmlora_deploy`` is ``rmlora-deploy``.

Python then searches the working directory for modules first; ``python -P -m rmlora_deploy`` does not.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C during its imports, or before it can catch it, is one line too."""
    try:
        from rmlora_deploy.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("\nError: Interrupted: give the same command again.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
