"""prefect.yaml, the Dockerfile and the pool's template fit the project, Prefect and the workers that would run them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

POOLS = {"processes": "process", "containers": "docker", "pods": "kubernetes"}


def deployments() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return {entry["name"]: entry for entry in loaded}


def shipped_template() -> Any:
    return json.loads((ROOT / "deploy" / "kubernetes_pool.json").read_text(encoding="utf-8"))


def template(kind: str) -> Any:
    """The job template of a kind of work pool: the shipped one, or the worker's own; skips where that is missing."""
    if kind == "process":
        from prefect.workers.process import ProcessWorker

        return ProcessWorker.get_default_base_job_template()
    worker = pytest.importorskip(f"prefect_{kind}", reason=f"prefect-{kind} is not installed: extra deploy")
    return shipped_template() if kind == "kubernetes" else worker.DockerWorker.get_default_base_job_template()


def render(kind: str, entry: Any) -> Any:
    """A deployment's job as its worker would start it."""
    given = template(kind), entry["work_pool"].get("job_variables", {})
    if kind == "process":
        from prefect.workers.process import ProcessJobConfiguration as Configuration
    elif kind == "docker":
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
    else:
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
    return asyncio.run(Configuration.from_template_and_values(*given))


@pytest.mark.parametrize(("pool", "kind"), POOLS.items())
def test_job_variables_are_valid_for_their_work_pool(pool: str, kind: str) -> None:
    from prefect.utilities.schema_tools import validate

    (entry,) = [entry for entry in deployments().values() if entry["work_pool"]["name"] == pool]
    schema = template(kind)["variables"]
    variables = entry["work_pool"].get("job_variables", {})
    assert set(variables) <= set(schema["properties"])
    assert validate(variables, schema) == []
    assert validate({"image": 1} if kind != "process" else {"stream_output": "perhaps"}, schema) != []


def test_the_container_mounts_the_cache_and_reaches_a_registry() -> None:
    job = render("docker", deployments()["docker"])
    assert job.volumes == ["vocabgraft-cache:/project/.dvc/cache"]
    assert job.image == "vocabgraft:latest" and "MLFLOW_TRACKING_URI" in job.env


def test_the_pod_mounts_the_cache_and_is_a_job_that_kubernetes_knows() -> None:
    job = render("kubernetes", deployments()["kubernetes"])
    client = pytest.importorskip(
        "kubernetes_asyncio.client", reason="kubernetes-asyncio is not installed: extra deploy"
    )
    spec = job.job_manifest["spec"]["template"]["spec"]
    known = set(client.V1PodSpec.attribute_map.values()) | {"completions", "parallelism"}
    assert set(spec) <= known and set(spec["containers"][0]) <= set(client.V1Container.attribute_map.values())
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "vocabgraft-cache"
    assert spec["containers"][0]["volumeMounts"][0]["mountPath"] == "/project/.dvc/cache"
    assert spec["containers"][0]["image"] == "registry.example.org/vocabgraft:latest"


def test_the_pools_template_is_the_workers_own_with_the_cache_added() -> None:
    worker = pytest.importorskip("prefect_kubernetes", reason="prefect-kubernetes is not installed: extra deploy")
    own, shipped = worker.KubernetesWorker.get_default_base_job_template(), shipped_template()
    added = shipped["variables"]["properties"].pop("cache_claim")
    assert added["default"] == "vocabgraft-cache"
    spec = shipped["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    del spec["volumes"], spec["securityContext"], spec["containers"][0]["volumeMounts"]
    assert shipped == own


def test_every_deployment_is_the_flow_with_parameters_that_it_has() -> None:
    from prefect.schedules import Cron

    from flows.prefect_flow import build_model

    for name, entry in deployments().items():
        file, function = entry["entrypoint"].split(":")
        assert (ROOT / file).is_file() and function == build_model.fn.__name__, name
        assert build_model.validate_parameters(entry["parameters"]).items() >= entry["parameters"].items()
        (schedule,) = entry["schedules"]
        assert Cron(schedule["cron"], timezone=schedule["timezone"])
        assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


@pytest.mark.slow
def test_prefect_deploys_all_of_them_to_pools_that_check_their_schemas(prefect_server: None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL

    with get_client(sync_client=True) as client:
        for pool, kind in POOLS.items():
            client.create_work_pool(WorkPoolCreate(name=pool, type=kind, base_job_template=template(kind)))
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with get_client(sync_client=True) as client:
        for name, entry in deployments().items():
            deployment = client.read_deployment_by_name(f"build_model/{name}")
            assert deployment.work_pool_name == entry["work_pool"]["name"]
            assert deployment.global_concurrency_limit is not None and deployment.global_concurrency_limit.limit == 1


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text(encoding="utf-8")


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.+)$", dockerfile(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_everything_that_the_dockerfile_copies_exists_and_is_sent_to_docker() -> None:
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed, source


def test_the_image_holds_all_that_the_stages_read() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    made = [out if isinstance(out, str) else next(iter(out)) for stage in stages.values() for out in stage["outs"]]
    for name, stage in stages.items():
        for dep in stage["deps"]:
            held = any(Path(dep).is_relative_to(source) for source in copied())
            assert held or any(Path(dep).is_relative_to(out) for out in made), f"{name}: {dep}"


def test_the_image_installs_the_pinned_torch_and_the_projects_dependencies() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", pins, re.MULTILINE)
    assert "sed -n 's/^torch==//p' constraints.txt" in dockerfile() and "-c constraints.txt" in dockerfile()
