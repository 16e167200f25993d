"""``python -m rmlora_deploy``: the command line, for launchers such as torchrun that start a module."""

from rmlora_deploy.cli import main

if __name__ == "__main__":
    main()
