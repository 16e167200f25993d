"""What ``rmlora-deploy serve --ray`` does with its options: run the application, or write a config file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.serving.scaling.application import Application, Scale
from rmlora_deploy.serving.scaling.cluster import run_on_ray
from rmlora_deploy.serving.scaling.config_file import write_config
from rmlora_deploy.serving.scratch import Scratch
from rmlora_deploy.serving.serve_settings import ServeSettings
from rmlora_deploy.serving.served_tasks import check_served

__all__ = ["launch"]

_DEFAULT_REPLICAS = 2


def launch(
    bundles: Mapping[str, Path],
    limits: Mapping[str, Any],
    *,
    replicas: int | None,
    min_replicas: int | None,
    max_replicas: int | None,
    ingress_replicas: int | None,
    shared_dir: Path | None,
    ray_address: str | None,
    config_file: Path | None,
    host: str,
    port: int,
    on_progress: Callable[[str], None],
) -> None:
    """Serve ``bundles`` (name → directory), or write ``config_file``; errors as :func:`run_on_ray`.

    Args:
        bundles: what to serve.
        limits: fields of :class:`ServeSettings`.
        replicas: a fixed number of replicas.
        min_replicas: smallest number, if the number scales with the load.
        max_replicas: largest number.
        ingress_replicas: processes that forward requests.
        shared_dir: directory for adapters loaded at run time; None takes a temporary one, on a single machine.
        ray_address: cluster to join.
        config_file: file to write; then nothing is run.
        host: address to listen on.
        port: port to listen on.
        on_progress: called with lines for the person who started it.
    """
    scale = _scale(replicas, min_replicas, max_replicas, ingress_replicas)
    elsewhere = ray_address is not None or config_file is not None
    if ray_address is not None and config_file is not None:
        raise ConfigError(
            "--write-config does not start anything, so --ray-address has no effect: leave one of them out."
        )
    if elsewhere and shared_dir is None:
        raise ConfigError("On a cluster --shared-dir is required: name a directory that all its nodes share.")
    key = limits.get("api_key")
    directories = tuple(path.absolute() for path in limits.get("adapter_dirs", ()))
    chosen = {**limits, "api_key": None, "threads": limits.get("threads") or 1}
    if config_file is not None:  # its paths are on other machines
        settings = ServeSettings(**{**chosen, "adapter_dirs": ()})
    else:
        settings = ServeSettings(**{**chosen, "adapter_dirs": directories})
        for path in bundles.values():
            check_served(Bundle.open(path, check_files=False))
    with ExitStack() as stack:
        if shared_dir is None:
            shared_dir = stack.enter_context(Scratch()).path
        elif config_file is None and not shared_dir.is_dir():
            raise ConfigError(f"--shared-dir {shared_dir} is not a directory.")
        paths = {name: str(path.absolute()) for name, path in bundles.items()}
        application = Application(paths, str(shared_dir.absolute()), settings, key_required=key is not None)
        if config_file is not None:
            write_config(config_file, application, scale, directories, host=host, port=port)
            on_progress(f"Written: {config_file}")
            return
        if key is not None and ray_address is None:
            os.environ["RMLORA_API_KEY"] = key  # the processes started here inherit it
        # Ray puts the directory it is started from first on the module search path of every worker, where a user's own
        # click.py or numpy.py would be imported instead of the package. Start it from an empty one; all paths are absolute.
        stack.enter_context(chdir(stack.enter_context(Scratch()).path))
        run_on_ray(application, scale, host=host, port=port, address=ray_address, on_progress=on_progress)


def _scale(replicas: int | None, least: int | None, most: int | None, ingresses: int | None) -> Scale:
    more = {} if ingresses is None else {"ingress_replicas": ingresses}
    if least is None and most is None:
        return Scale(replicas=_DEFAULT_REPLICAS if replicas is None else replicas, **more)
    if replicas is not None:
        raise ConfigError("--replicas is a fixed number: leave it out, or leave out --min-replicas and --max-replicas.")
    if most is None:
        raise ConfigError("--min-replicas needs --max-replicas: add it.")
    return Scale(min_replicas=1 if least is None else least, max_replicas=most, **more)
