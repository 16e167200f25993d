"""``rmlora-deploy serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rmlora.errors import ConfigError, require
from rmlora_deploy.cli.console import colored, make_console, named
from rmlora_deploy.cli.provider_options import provider_option
from rmlora_deploy.cli.ray_options import ray_options, take_ray_options

__all__ = ["command"]


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--api-key", envvar="RMLORA_API_KEY", show_envvar=True, help="Key that clients must send as a bearer token."
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Name that clients may call the server by, with a port or without; repeatable; '*' allows all.  "
    "[default: localhost and --host without a key, all with one]",
)
@click.option(
    "--adapter-dir",
    "adapter_dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory that adapters may be loaded from at run time; repeatable.  [default: none, loading is off]",
)
@provider_option()
@click.option(
    "--threads", type=click.IntRange(1), help="Threads that compute one batch.  [default: ONNX Runtime's choice]"
)
@click.option(
    "--max-active-adapters", type=int, default=64, show_default=True, help="Adapters kept in memory, per bundle."
)
@click.option("--workers", type=int, default=1, show_default=True, help="Batches computed at the same time.")
@click.option("--max-batch", type=int, default=16, show_default=True, help="Rows in one batch.")
@click.option(
    "--max-wait-ms",
    type=float,
    default=2.0,
    show_default=True,
    help="Maximum time a request waits for others to batch with.",
)
@click.option(
    "--max-queue", type=int, default=1024, show_default=True, help="Rows that may wait; more are refused (429)."
)
@click.option("--max-inputs", type=int, default=256, show_default=True, help="Inputs in one request.")
@click.option("--max-characters", type=int, default=100_000, show_default=True, help="Characters in one text.")
@click.option(
    "--max-request-characters",
    type=int,
    default=1_000_000,
    show_default=True,
    help="Characters in all texts of one request (413).",
)
@click.option("--max-pixels", type=int, default=25_000_000, show_default=True, help="Pixels in one image.")
@click.option(
    "--max-request-pixels",
    type=int,
    default=100_000_000,
    show_default=True,
    help="Pixels in all images of one request (413).",
)
@click.option("--max-body", type=int, default=8 * 2**20, show_default=True, help="Bytes in one request.")
@click.option(
    "--body-timeout",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds within which a request must arrive (408).",
)
@click.option(
    "--write-timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds within which a client must read an answer.",
)
@click.option(
    "--timeout",
    type=float,
    default=30.0,
    show_default=True,
    help="Seconds within which a request must be answered (504).",
)
@click.option(
    "--drain", type=float, default=20.0, show_default=True, help="Seconds to finish accepted requests when stopped."
)
@ray_options
def command(bundles: tuple[str, ...], host: str, port: int, on_ray: bool, **limits: Any) -> None:
    """Serve BUNDLES over HTTP, batching requests across the adapters of each.

    Requests name a model. Every adapter is a model under its own name; the bundle is a model too, called NAME or like its
    directory: the base, or what was merged into it. A bundle "both" with the adapters "spam" and "trec" serves three:

    \b
      rmlora-deploy serve both
      curl localhost:8000/classify -H 'content-type: application/json' \\
           -d '{"model": "spam", "input": "Call now to win"}'
      curl localhost:8000/v1/models

    Clients can use OpenAI's interface (/v1/models, /v1/embeddings), vLLM's (/classify, /score, /v1/load_lora_adapter),
    Cohere's and Jina's (/rerank), text-embeddings-inference's (/predict, /rerank) or the Open Inference Protocol (/v2/…). /docs describes them all, / is a page to try the models, and /metrics is for Prometheus.
    Stop the server with Ctrl-C or SIGTERM: it still answers the requests it has accepted. SIGHUP makes it take over adapters
    that were added to or removed from its bundles.

    With --ray the same server runs as several replicas on Ray Serve, on this machine or a cluster. --threads is then 1
    by default.

    \b
    Examples:
      rmlora-deploy serve texts=both photos=./photo-bundle --port 9000
      RMLORA_API_KEY=secret rmlora-deploy serve both --host 0.0.0.0 --adapter-dir ./adapters
      rmlora-deploy serve both --ray --min-replicas 1 --max-replicas 4
      rmlora-deploy serve both=/models/both --ray --shared-dir /shared --write-config serve.yaml
    """
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve")
    from rmlora_deploy.serving.address import LOOPBACK_ADDRESSES
    from rmlora_deploy.serving.host_names import hosts_for
    from rmlora_deploy.serving.json_log import start_log
    from rmlora_deploy.serving.serve_settings import ServeSettings
    from rmlora_deploy.serving.server import run_server

    console = make_console(as_json=True)
    scaling = take_ray_options(limits, on_ray=on_ray)
    keyless = limits["api_key"] is None
    limits["allowed_hosts"] = hosts_for(host, limits["allowed_hosts"], key=not keyless)
    if host not in LOOPBACK_ADDRESSES and keyless:
        called = ", ".join(limits["allowed_hosts"]) or "any name"
        console.print(
            colored(
                "Warning:",
                "yellow",
                f" listening on {host} without --api-key: anybody who can reach it can use it. It "
                f"answers to {called}; add names with --allowed-host.",
            )
        )
    paths = {name: Path(path) for name, path in named(bundles, flag="serve").items()}
    if not paths:
        raise ConfigError("Name at least one bundle.")
    if on_ray:
        require("ray", "ray")
        from rmlora_deploy.serving.scaling.launch import launch

        launch(paths, limits, **scaling, host=host, port=port, on_progress=console.print)
        return
    settings = ServeSettings(**limits)
    log = start_log()
    on_progress = console.print if console.is_terminal else log.info
    run_server(paths, settings, host=host, port=port, on_progress=on_progress)
