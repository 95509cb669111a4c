"""The manifests: valid by Kubernetes' own schemas, pinned, bounded, probed, allowed little; and what they name is there.

No cluster runs here. `kubectl kustomize` renders them where kubectl is installed; else each file is looked at as it is.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows import worker
from tasks.adapters.supervisor import POOL

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
KUBERNETES = DEPLOYMENTS / "kubernetes"
VERSIONS = ("1.32", "1.36")
"""Of Kubernetes: the oldest and the newest of those the manifests are written for."""
SHIPPED = sorted({*KUBERNETES.glob("base/*.yaml"), *KUBERNETES.glob("gpu/*.yaml")})
MANIFESTS = [path for path in SHIPPED if path.name != "kustomization.yaml"]
POOLS = {"recsys": KUBERNETES / "base/pools/cpu.json", worker.TEACHER_POOL: KUBERNETES / "gpu/pools/gpu.json"}
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
RENDERING = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")

Object = dict[str, Any]
OBJECTS = [
    (path.name, each) for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())
]  # fmt: skip
NAMES = [f"{name}: {each['kind']} {each['metadata']['name']}" for name, each in OBJECTS]


def of_kind(kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for _, each in OBJECTS if each["kind"] == kind}


def job_of(path: Path) -> Object:
    """The Kubernetes job that Prefect makes of a template when nobody asks for anything."""
    template = json.loads(path.read_text())
    values = {name: each.get("default") for name, each in template["variables"]["properties"].items()}
    values |= {"command": "prefect flow-run execute", "name": "night", "labels": {}, "annotations": {}, "env": {}}

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        if isinstance(part, list):
            return [filled(value) for value in part]
        whole = PLACEHOLDER.fullmatch(part) if isinstance(part, str) else None
        if whole:
            return values[whole[1]]
        return PLACEHOLDER.sub(lambda match: values[match[1]], part) if isinstance(part, str) else part

    job = filled(template["job_configuration"]["job_manifest"])
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["args"] = container["args"].split()  # as the worker does
    return job


PODS = {f"Deployment {name}": each["spec"]["template"] for name, each in of_kind("Deployment").items()}
PODS |= {f"job of {pool}": job_of(path)["spec"]["template"] for pool, path in POOLS.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("number", range(len(OBJECTS)), ids=NAMES)
def test_an_object_is_one_that_kubernetes_knows(number, version):
    kubernetes_validate.validate(OBJECTS[number][1], version, strict=True)


@pytest.mark.parametrize("path", POOLS.values(), ids=POOLS.keys())
def test_a_run_becomes_a_job_that_kubernetes_knows(path):
    kubernetes_validate.validate(job_of(path), VERSIONS[0], strict=True)


def test_the_schemas_refuse_what_is_wrong():
    wrong = json.loads(json.dumps(of_kind("Deployment")["serve"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_nobody_and_can_do_little(name):
    pod = PODS[name]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])
    of_the_cluster = name in ("Deployment worker", "Deployment worker-gpu")
    assert pod["automountServiceAccountToken"] is of_the_cluster
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", PODS)
def test_a_container_is_bounded_and_probed(name):
    (container,) = PODS[name]["spec"]["containers"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()
    assert all("sizeLimit" in v["emptyDir"] for v in PODS[name]["spec"]["volumes"] if "emptyDir" in v)
    if name.startswith("Deployment"):
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_mounts_and_reads_is_there(name):
    pod = PODS[name]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claims <= of_kind("PersistentVolumeClaim").keys()
    if "serviceAccountName" in pod:
        assert pod["serviceAccountName"] in of_kind("ServiceAccount")
    settings = dict(literal.split("=", 1) for literal in generator("settings")["literals"])
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            assert source["configMapKeyRef"]["name"] == "settings"
            assert source["configMapKeyRef"]["key"] in settings


def generator(name: str) -> Object:
    written = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["configMapGenerator"]
    return next(each for each in written if each["name"] == name)


def test_secrets_are_named_never_written_and_their_making_is_documented():
    assert of_kind("Secret") == {}
    page = (DEPLOYMENTS.parent / "docs" / "deploying.md").read_text()
    asked: dict[str, set[str]] = {}
    for pod in PODS.values():
        for variable in pod["spec"]["containers"][0].get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                asked.setdefault(reference["name"], set()).add(reference["key"])
            else:
                assert not re.search(r"(?i)password|secret", variable["name"]), variable
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                asked.setdefault(volume["secret"]["secretName"], set())
    assert asked.keys() == {"databases", "bucket", "gate"}
    for name, keys in asked.items():
        made = re.search(rf"create secret generic {name}((?:.*\\\n)*.*)", page)
        assert made, f"docs/deploying.md does not make the secret {name}"
        assert keys <= set(re.findall(r"--from-(?:literal|file)=([\w.-]+?)=", made[1])), name


@pytest.mark.parametrize("name", of_kind("Service"))
def test_a_service_finds_its_pods(name):
    service = of_kind("Service")[name]
    pod = of_kind("Deployment")[name]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert of_kind("Deployment")[name]["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_what_serves_and_what_lets_in_survives_a_drained_node():
    for name in ("serve", "gate"):
        assert of_kind("Deployment")[name]["spec"]["replicas"] >= 2
        budget = of_kind("PodDisruptionBudget")[name]["spec"]
        assert budget["minAvailable"] == 1
        assert budget["selector"] == of_kind("Deployment")[name]["spec"]["selector"]


def test_ports_are_those_of_the_gate():
    for name, port in re.findall(r"server (\w+):(\d+);", (DEPLOYMENTS / "nginx/nginx.conf").read_text()):
        assert of_kind("Service")[name]["spec"]["ports"][0]["port"] == int(port)
        assert of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"][0]["ports"][0][
            "containerPort"
        ] == int(port)


def test_nobody_speaks_to_anybody_without_a_rule():
    policies = of_kind("NetworkPolicy")
    assert policies["nobody"]["spec"]["podSelector"] == {}
    assert policies["nobody"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["nobody"]["spec"]
    labels = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in PODS.values()}
    assert labels == {"prefect", "mlflow", "serve", "gate", "worker", "worker-gpu", "night"}
    covered = set()
    for name, policy in policies.items():
        if name != "nobody":
            assert 'from": []' not in json.dumps(policy)
            covered |= chosen(policy["spec"]["podSelector"])
    assert covered == labels
    assert [p for p in policies if any("from" not in rule for rule in policies[p]["spec"].get("ingress", []))] == [
        "gate"
    ]


def chosen(selector: Object) -> set[str]:
    named = set(selector.get("matchLabels", {}).values())
    return named | {value for rule in selector.get("matchExpressions", []) for value in rule["values"]}


def test_the_worker_may_make_jobs_and_read_no_secret():
    (role,) = of_kind("Role").values()
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert {("jobs", "create"), ("jobs", "delete"), ("pods", "watch"), ("pods/log", "get")} <= allowed
    assert not {resource for resource, _ in allowed} & {"secrets", "pods/exec", "*"}
    assert of_kind("ClusterRole") == of_kind("CronJob") == {}


@pytest.mark.parametrize("path", POOLS.values(), ids=POOLS.keys())
def test_a_template_asks_for_nothing_that_it_does_not_declare(path):
    template = json.loads(path.read_text())
    declared = template["variables"]["properties"]
    used = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
    assert used == declared.keys()
    assert all(each.get("description") or each.get("title") for each in declared.values())
    pinned = worker.with_image(template, "registry.example.com/factory:9")
    assert pinned["variables"]["properties"]["image"]["default"] == "registry.example.com/factory:9"
    assert template == json.loads(path.read_text()), "the template itself is not changed"


def test_a_teacher_gets_a_gpu_and_a_night_does_not():
    jobs = {pool: job_of(path)["spec"]["template"]["spec"] for pool, path in POOLS.items()}
    assert "nvidia.com/gpu" not in jobs[POOL]["containers"][0]["resources"]["limits"]
    assert jobs[worker.TEACHER_POOL]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for pod in jobs.values():
        environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
        mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert environment["RECSYS_HOME"] in mounted


def test_a_job_is_told_what_the_worker_needs_to_find_its_home():
    (container,) = PODS["Deployment worker"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "flows.worker"]
    asked = worker._parser().parse_args(container["args"])
    assert asked.jobs == Path("/pools/cpu.json")
    files = {Path(name).name for name in generator("pools")["files"]}
    assert asked.jobs.name in files
    assert "/var/lib/recsys" in {mount["mountPath"] for mount in container["volumeMounts"]}


@cache
def rendered(overlay: str) -> list[Object]:
    words = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@RENDERING
@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_it_renders_in_one_namespace_with_images_that_are_pinned(overlay):
    for each in rendered(overlay):
        kubernetes_validate.validate(each, VERSIONS[0], strict=True)
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "recsys"
    images = re.findall(r'"image": "([^"]+)"', json.dumps(rendered(overlay)))
    assert all(re.search(r":(?!latest)[\w.-]*\d", image) for image in images), images


@RENDERING
def test_jobs_run_the_image_of_their_worker():
    found = {each["metadata"]["name"]: each for each in rendered("gpu") if each["kind"] == "Deployment"}
    containers = {name: each["spec"]["template"]["spec"]["containers"][0] for name, each in found.items()}
    asked = worker._parser().parse_args(containers["worker"]["args"])
    assert asked.image == containers["worker"]["image"]
    assert asked.teacher_image == containers["worker-gpu"]["image"]
    assert asked.image != asked.teacher_image
    pools = next(
        each for each in rendered("gpu") if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("pools")
    )
    assert {asked.jobs.name, asked.teacher_jobs.name} == pools["data"].keys()


@RENDERING
def test_the_gate_is_the_one_of_compose():
    maps = [each for each in rendered("base") if each["kind"] == "ConfigMap"]
    gate = next(each for each in maps if each["metadata"]["name"].startswith("gate"))
    assert gate["data"]["nginx.conf"] == (DEPLOYMENTS / "nginx/nginx.conf").read_text()
