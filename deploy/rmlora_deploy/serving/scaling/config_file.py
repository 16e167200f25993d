"""Writes the config file for ``serve deploy`` and for a RayService on Kubernetes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.storage import atomic_file
from rmlora_deploy.serving.scaling.application import APPLICATION, Application, Scale

__all__ = ["describe_application", "write_config"]

_HEAD = """\
# Written by  rmlora-deploy serve --ray --write-config.  Deploy it on the cluster with  serve deploy {name}
# Every node needs the bundles and shared_dir under these paths{key}.
# To release a new bundle, put it into a new directory, change its path here and deploy again: Ray replaces the replicas
# one by one.
"""
_KEY = ", and RMLORA_API_KEY in its environment"


def describe_application(
    application: Application, scale: Scale, adapter_dirs: Sequence[Path], *, host: str, port: int
) -> dict[str, Any]:
    """Return the config as plain values, with replica counts and resources where Ray's documentation has them."""
    args = application.to_args()
    if adapter_dirs:
        args["settings"]["adapter_dirs"] = [str(path) for path in adapter_dirs]
    deployments = [{"name": name, **options} for name, options in scale.options(application.settings).items()]
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "rmlora_deploy.serving.scaling.deployments:build",
                "args": args,
                "deployments": deployments,
            }
        ],
    }


def write_config(
    path: Path, application: Application, scale: Scale, adapter_dirs: Sequence[Path], *, host: str, port: int
) -> None:
    """Write the config file; ``adapter_dirs`` are paths on the cluster and need not exist on this machine."""
    import yaml

    head = _HEAD.format(name=path.name, key=_KEY if application.key_required else "")
    body = yaml.safe_dump(describe_application(application, scale, adapter_dirs, host=host, port=port), sort_keys=False)
    with atomic_file(path) as temporary:
        temporary.write_text(head + body, encoding="utf-8")
