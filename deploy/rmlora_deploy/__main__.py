"""Run the command line as a module: ``python -m rmlora_deploy`` is ``rmlora-deploy``.

Python then searches the working directory for modules first; ``python -P -m rmlora_deploy`` does not.
"""

from rmlora_deploy.cli import main

if __name__ == "__main__":
    main()
