"""The container and Kubernetes examples, as far as they can be checked without an engine or a cluster."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rmlora_deploy.cli.serve import command
from rmlora_deploy.serving.middleware.auth import OPEN_PATHS
from rmlora_deploy.serving.scaling.application import Application
from tests.helpers.cli import ROOT, SEARCH_PATH, run

CONTAINERS = ROOT / "docs" / "containers"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()
KUBERNETES = "1.31"
PINS = (ROOT / "requirements" / "serve-cpu.txt").read_text().splitlines()


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONTAINERS / name).read_text()))


def pods(value: Any) -> list[dict[str, Any]]:
    """Return every pod template in a manifest."""
    if isinstance(value, list):
        return [pod for item in value for pod in pods(item)]
    if not isinstance(value, dict):
        return []
    here = [value["template"]] if "template" in value and "containers" in value["template"].get("spec", {}) else []
    return here + [pod for item in value.values() for pod in pods(item)]


def instructions(name: str) -> list[str]:
    """Return the arguments of every such instruction in the Dockerfile."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or "hadolint"
    done = subprocess.run([linter, CONTAINERS / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_installs_what_there_is() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert (
            "--no-deps --require-hashes -r requirements/serve-" in line and "--no-deps --no-build-isolation ." in line
        )
    for line in instructions("COPY"):
        if "--from" not in line:
            assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    kept = (CONTAINERS / "Dockerfile.dockerignore").read_text().split()
    sources = {part for line in instructions("COPY") if "--from" not in line for part in line.split()[:-1]}
    assert {line.removeprefix("!") for line in kept if line.startswith("!")} == sources
    stages = {line.split(" AS ")[1]: line.split(" AS ")[0] for line in instructions("FROM")}
    assert {"cpu", "cuda"} <= set(stages)
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in stages.values())


def test_the_containers_commands_are_ours_and_ask_for_a_key() -> None:
    for line in instructions("CMD"):
        words = json.loads(line)
        assert words[0] == "serve"
        command.make_context("serve", words[1:])
        assert words[words.index("--host") + 1].startswith("0.")
    for line in instructions("ENTRYPOINT"):
        shell = json.loads(line)
        silent = subprocess.run(
            [*shell, "--version"], capture_output=True, text=True, env={"PATH": "/bin"}, check=False
        )
        assert silent.returncode != 0 and "RMLORA_API_KEY" in silent.stderr
        keyed = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "RMLORA_API_KEY": "x",
            "PYTHONPATH": SEARCH_PATH,
        }
        done = subprocess.run([*shell, "--version"], capture_output=True, text=True, env=keyed, check=False)
        assert done.returncode == 0 and "rmlora-deploy" in done.stdout
    for users in (instructions("USER"), instructions("HEALTHCHECK")):
        assert len(users) == 2
    for line in instructions("HEALTHCHECK"):
        probe = re.search(r"http://127\.0\.0\.1:(\d+)([\w/]+)", line)
        assert probe is not None and probe.group(2) in OPEN_PATHS and f"EXPOSE {probe.group(1)}" in DOCKERFILE


def test_the_manifests_are_kubernetes() -> None:
    for document in documents("kubernetes.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert [item["kind"] for item in documents("kubernetes.yaml")] == ["Deployment", "Service", "PodDisruptionBudget"]
    (service,) = documents("kuberay.yaml")
    templates = pods(service)
    assert len(templates) == 2
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "checked"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kuberay.yaml"])
def test_pods_have_no_root_no_key_in_sight_and_only_volumes_that_are_there(name: str) -> None:
    for template in pods(documents(name)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and f"USER {spec['securityContext']['runAsUser']}" in DOCKERFILE
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                **({"readOnlyRootFilesystem": True} if name == "kubernetes.yaml" else {}),
            }
            (key,) = [item for item in container["env"] if item["name"] == "RMLORA_API_KEY"]
            assert set(key["valueFrom"]) == {"secretKeyRef"}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind in container:
                    assert container[kind]["httpGet"]["path"] in OPEN_PATHS
                    assert container[kind]["httpGet"]["port"] in [port["name"] for port in container["ports"]]


def test_the_deployments_arguments_are_ours() -> None:
    deployment, service, budget = documents("kubernetes.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][0] == "serve"
    given = command.make_context("serve", container["args"][1:]).params
    assert given["port"] == container["ports"][0]["containerPort"] and not given["on_ray"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > given["drain"] + pause
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    assert any(
        given["bundles"][0].partition("=")[2].startswith(mount["mountPath"]) for mount in container["volumeMounts"]
    )


def test_the_ray_services_config_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CONTAINERS / "kuberay.yaml").read_text()
    config = yaml.safe_load(documents("kuberay.yaml")[0]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    told = re.search(r"rmlora-deploy (serve both=.*?)--write-config FILE", comment)
    assert told is not None
    monkeypatch.setenv("RMLORA_API_KEY", "a key that must not be written")
    done = run(*shlex.split(told.group(1)), "--write-config", tmp_path / "serve.yaml")
    assert done.code == 0, done.stderr
    written = (tmp_path / "serve.yaml").read_text()
    assert yaml.safe_load(written) == config and "must not be written" not in written
    (ray,) = [line.partition("==")[2].rstrip(" \\") for line in PINS if line.startswith("ray==")]
    assert documents("kuberay.yaml")[0]["spec"]["rayClusterConfig"]["rayVersion"] == ray
    args = config["applications"][0]["args"]
    assert Application.from_args({**args, "settings": {"threads": 2}}).bundles == args["bundles"]
