"""The config file for ``serve deploy``, and for the RayService of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmlora.storage import atomic_file
from rmlora_deploy.serving.scaling.application import Application, Scale
from rmlora_deploy.serving.scaling.ray_start import APPLICATION

__all__ = ["describe_application", "write_config"]

_HEAD = """\
# Written by  rmlora-deploy serve --ray --write-config.  Deploy it on the cluster with  serve deploy {name}
# Every node needs the bundles and shared_dir under these paths{key}.
# A new bundle goes into a new directory: change its path here and deploy again, and replicas are replaced one by one.
"""
_KEY = ", and RMLORA_API_KEY in its environment"


def describe_application(
    application: Application, scale: Scale, adapter_dirs: Sequence[Path], *, host: str, port: int
) -> dict[str, Any]:
    """Return the config as plain values; numbers and resources are where Ray's documents look for them."""
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
                "import_path": "rmlora_deploy.serving.scaling.ray_app:build",
                "args": args,
                "deployments": deployments,
            }
        ],
    }


def write_config(
    path: Path, application: Application, scale: Scale, adapter_dirs: Sequence[Path], *, host: str, port: int
) -> None:
    """Write the config file; ``adapter_dirs`` are the cluster's, of which there need be none here."""
    import yaml

    head = _HEAD.format(name=path.name, key=_KEY if application.key_required else "")
    body = yaml.safe_dump(describe_application(application, scale, adapter_dirs, host=host, port=port), sort_keys=False)
    with atomic_file(path) as temporary:
        temporary.write_text(head + body, encoding="utf-8")
