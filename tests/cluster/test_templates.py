"""Rendered templates: well-formed, complete, and valid by the schemas of their own tools."""

import copy
import gzip
import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

from resnet_ops.config import TrainConfig
from resnet_ops.errors import UserError
from resnet_ops.orchestration import templates
from resnet_ops.orchestration.template_values import KINDS_OF_OPTION, ClusterValues, Kind
from resnet_ops.orchestration.templates import FILES
from tests.conftest import Ended
from tests.waiting import wait_for

Cli = Callable[..., Ended]
DATA = Path(__file__).parent / "data"
KINDS: tuple[Kind, ...] = get_args(Kind)
SIZES = {
    "one-cpu": {"nodes": "1"},
    "cpus": {"nodes": "3", "cpus_per_node": 8, "memory_gib": 32},
    "one-gpu": {"nodes": "1", "gpus_per_node": 1},
    "gpus": {"nodes": "4", "gpus_per_node": 8, "cpus_per_node": 96, "memory_gib": 512, "shm_gib": 200},
    "elastic": {"nodes": "2:5", "gpus_per_node": 4},
}
TRAINED = {"max_failures": 3, "checkpoint_every": "10m", "model": "auto", "data": "digits", "epochs": 30}
SIZE = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def rendered(kind: Kind, **values: Any) -> dict[str, str]:
    trained = {name: values.pop(name, usual) for name, usual in TRAINED.items()}
    return templates.render(kind, ClusterValues.of(**values), trained)


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress((DATA / name).read_bytes()))
    return loaded


def pruned(node: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema: as the API server, it knows no field that is not named.

    `x-kubernetes-int-or-string` stands in the place of a type, and means just that.
    """
    if isinstance(node, list):
        return [pruned(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: pruned(value) for key, value in node.items() if key != "properties"}
    if node.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if node.get("nullable") and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    if "properties" in node:
        result["properties"] = {name: pruned(value) for name, value in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in node:
            result["additionalProperties"] = False
    return result


@pytest.fixture(scope="module")
def kuberay() -> dict[str, jsonschema.Draft7Validator]:
    resources = schema("kuberay-crds.json.gz")
    for resource in resources.values():
        # The API server itself looks after these; a resource's schema says only that they are there.
        resource["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {kind: jsonschema.Draft7Validator(pruned(resource)) for kind, resource in resources.items()}


def ray_documents(texts: dict[str, str]) -> Iterator[dict[str, Any]]:
    for name in ("raycluster.yaml", "rayjob.yaml"):
        yield from (d for d in documents(texts[name]) if d["apiVersion"] == "ray.io/v1")


@SIZE
def test_kuberay_knows_every_field(kuberay: dict[str, jsonschema.Draft7Validator], size: dict[str, Any]) -> None:
    resources = list(ray_documents(rendered("kuberay", **size)))
    assert [d["kind"] for d in resources] == ["RayCluster", "RayJob"]
    for document in resources:
        kuberay[document["kind"]].validate(document)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("spec",), {"backofLimit": 3}),
        (("spec", "rayClusterSpec"), {"authOption": {"mode": "token"}}),
        (("spec", "rayClusterSpec", "authOptions"), {"mode": "tokens"}),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), {"maxReplica": 3}),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), {"replicas": "three"}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"), {"restartpolicy": "Never"}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0), {"volumeMount": []}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 1, "emptyDir"), {"size": "1Gi"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_check_notices_what_kuberay_would_not_know(
    kuberay: dict[str, jsonschema.Draft7Validator], path: tuple[Any, ...], wrong: dict[str, Any]
) -> None:
    (job,) = [d for d in ray_documents(rendered("kuberay")) if d["kind"] == "RayJob"]
    place = copy.deepcopy(job)
    spoilt = place
    for step in path:
        place = place[step]
    place.update(wrong)
    with pytest.raises(jsonschema.ValidationError, match=next(iter(wrong.values() if "mode" in wrong else wrong))):
        kuberay["RayJob"].validate(spoilt)


@SIZE
def test_kuberay_means_what_was_asked(size: dict[str, Any]) -> None:
    values = ClusterValues.of(name="mine", namespace="lab", retries=5, time_limit="12h", **size)
    fewest, most = values.nodes.fewest, values.nodes.most
    texts = templates.render("kuberay", values, TRAINED)
    cluster, job = ray_documents(texts)
    script, _ = documents(texts["rayjob.yaml"])
    (claim,) = documents(texts["storage.yaml"])
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"] == cluster["spec"]["workerGroupSpecs"]
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (5, 12 * 3600)
    assert {d["metadata"]["namespace"] for d in (cluster, job, script, claim)} == {"lab"}
    for spec in (cluster["spec"], job["spec"]["rayClusterSpec"]):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == metadata.version("ray")
        assert spec.get("enableInTreeAutoscaling", False) == (most > fewest)
        head = spec["headGroupSpec"]
        (group,) = spec["workerGroupSpecs"]
        assert head["serviceType"] == "ClusterIP"
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (fewest, fewest, most)
        (worker,) = group["template"]["spec"]["containers"]
        limits = worker["resources"]["limits"]
        assert limits == worker["resources"]["requests"]
        assert limits.get("nvidia.com/gpu") == (str(values.gpus_per_node) if values.gpus_per_node else None)
        assert "tolerations" in group["template"]["spec"] or not values.gpus_per_node
        for pod in (head["template"]["spec"], group["template"]["spec"]):
            assert pod["restartPolicy"] == "Never"
            (container,) = pod["containers"]
            (owner,) = pod["initContainers"]
            assert owner["securityContext"]["runAsUser"] == 0
            assert owner["command"][-1].endswith(
                f"chown {pod['securityContext']['runAsUser']} /mnt/resnet-ops /mnt/resnet-ops/runs"
            )
            assert "fsGroup" not in pod["securityContext"]  # which would not reach the volume
            stopping = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            if pod is group["template"]["spec"]:
                assert stopping == ["resnet-ops", "cluster", "drain"]
            else:  # nobody trains on the head; the RayJob's driver is there
                assert (stopping is not None) == (spec is not cluster["spec"])
            assert pod["terminationGracePeriodSeconds"] >= 60
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert set(mounts) == set(volumes)
            assert mounts["storage"] == "/mnt/resnet-ops"
            assert volumes["storage"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            shm = int(volumes["shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
            start = head if pod is head["template"]["spec"] else group
            assert 75 * 2**20 < int(start["rayStartParams"]["object-store-memory"]) < shm
    # The script that the job runs is the one that is mounted where it says.
    job_head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in job_head["containers"][0]["volumeMounts"] if m["name"] == "script"]
    (volume,) = [v for v in job_head["volumes"] if v["name"] == "script"]
    assert volume["configMap"]["name"] == script["metadata"]["name"]
    assert job["spec"]["entrypoint"] == f"bash {mount['mountPath']}/{next(iter(script['data']))}"


@SIZE
@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_ray_up_takes_it(kind: Kind, size: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = ClusterValues.of(**size)
    (config,) = documents(templates.render(kind, values, TRAINED)["cluster.yaml"])
    with (Path(inspect.getfile(validate_config)).parents[1] / "ray-schema.json").open() as file:
        jsonschema.validate(config, json.load(file))
    whole = prepare_config(copy.deepcopy(config))
    validate_config(whole)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config({**config, "max_worker": 3}))
    worker, head = (whole["available_node_types"][name] for name in ("worker", "head"))
    assert (worker["min_workers"], worker["max_workers"]) == (values.nodes.fewest, values.nodes.most)
    assert worker["resources"].get("GPU", 0) == values.gpus_per_node
    assert head["resources"] == {"CPU": 0}
    assert "--env RAY_AUTH_MODE=token" in whole["docker"]["run_options"]
    assert whole["file_mounts"]["~/ray_token"] == "./ray_token"
    (secure,) = whole["setup_commands"]
    assert "install -m 600 ~/ray_token ~/.ray/auth_token" in secure
    (start,) = [line for line in whole["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    mounts = [line for line in whole["initialization_commands"] if "mount -t nfs4" in line]
    assert len(mounts) == 1
    assert mounts[0].endswith(" /mnt/resnet-ops")
    assert "--volume /mnt/resnet-ops:/mnt/resnet-ops" in whole["docker"]["run_options"]


@pytest.fixture(scope="module")
def compose() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(schema("compose-spec.json.gz"))


@SIZE
def test_compose_takes_it(compose: jsonschema.Draft7Validator, size: dict[str, Any]) -> None:
    values = ClusterValues.of(**size)
    fewest, most = values.nodes.fewest, values.nodes.most
    (file,) = documents(templates.render("compose", values, TRAINED)["compose.yaml"])
    compose.validate(file)
    services = file["services"]
    workers = {name: service for name, service in services.items() if name != "head"}
    assert len(workers) == most
    assert len([service for service in workers.values() if "profiles" not in service]) == fewest
    assert [port for service in services.values() for port in service.get("ports", [])] == ["127.0.0.1:8265:8265"]
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN_PATH" not in service["environment"]  # each user has it where Ray looks by default
        assert "install -m 600 /run/secrets/ray_token ~/.ray/auth_token && exec ray start" in service["command"][-1]
        assert service["secrets"] == ["ray_token"]
        assert service["volumes"] == ["storage:/mnt/resnet-ops"]
        store = int(re.findall(r"--object-store-memory=(\d+)", service["command"][-1])[0])
        assert 75 * 2**20 < store < int(service["shm_size"].removesuffix("gb")) * 2**30
    gpus = [
        gpu
        for service in workers.values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        for gpu in device["device_ids"]
    ]
    assert gpus == [str(i) for i in range(most * values.gpus_per_node)]
    services["head"]["shm_sizes"] = "1gb"
    with pytest.raises(jsonschema.ValidationError, match="shm_sizes"):
        compose.validate(file)


@SIZE
def test_slurm_asks_for_what_was_asked(size: dict[str, Any]) -> None:
    values = ClusterValues.of(partition="gpu", account="lab", time_limit="90m", **size)
    fewest, most = values.nodes.fewest, values.nodes.most
    script = templates.render("slurm", values, TRAINED)["train.sbatch"]
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", script, re.MULTILINE))
    assert directives["nodes"] == (f"{fewest}-{most}" if most > fewest else str(fewest))
    gpus = values.gpus_per_node
    assert directives["cpus-per-task"] == str(values.cpus_per_node or 8 * gpus or 4)
    assert directives["mem"] == f"{values.memory_gib or 32 * gpus or 16}G"
    assert directives.get("gpus-per-node") == (str(values.gpus_per_node) if values.gpus_per_node else None)
    assert (directives["partition"], directives["account"], directives["time"]) == ("gpu", "lab", "90")
    assert "requeue" in directives
    assert ("no-kill" in directives) == (most > fewest)
    assert f"ENVIRONMENT={sys.prefix}\n" in script


def scripts(kind: Kind, **values: Any) -> dict[str, str]:
    texts = rendered(kind, **values)
    by_name = {name: text for name, text in texts.items() if text.startswith("#!") and not name.endswith(".py")}
    if kind == "kuberay":
        by_name["in the ConfigMap"] = "#!/usr/bin/env bash\n" + documents(texts["rayjob.yaml"])[0]["data"]["train.sh"]
    return by_name


@SIZE
@pytest.mark.parametrize("kind", KINDS)
def test_scripts_are_sound(kind: Kind, size: dict[str, Any], tmp_path: Path) -> None:
    texts = scripts(kind, **size)
    assert len(texts) == 1
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    for text in texts.values():
        file = tmp_path / "script"
        file.write_text(text)
        for command in (["bash", "-n"], [shellcheck or "bash", *([] if shellcheck else ["-n"])]):
            checked = subprocess.run([*command, file], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "slurm"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_run_begins_once_and_then_goes_on(kind: Kind, exists: bool, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    data = "/data/it's $HOME.parquet"  # what a shell would take apart
    (text,) = scripts(kind, name="mine", nodes="2:3", gpus_per_node=4, storage_path=storage, data=data).values()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "resnet-ops").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin" / "resnet-ops").chmod(0o755)
    if exists:
        (storage / "runs" / "mine").mkdir(parents=True)
        (storage / "runs" / "mine" / "run.json").touch()
    arguments = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert options.pop("--runs-dir") == f"{storage}/runs"
    where = {
        "--cluster": "auto", "--nodes": "2:3", "--gpus-per-node": "4", "--device": "cuda", "--wait": "600",
        "--max-failures": "3",
    }  # fmt: skip
    if exists:
        assert options == {"--resume": "mine", **where}
        assert {name[2:].replace("-", "_") for name in where} <= TrainConfig.changeable_on_resume()
    else:
        assert options == {
            "--name": "mine", "--data": data, "--checkpoint-every": "10m", "--model": "auto", "--epochs": "30", **where
        }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "stops"),
    [(0, False), (1, True), (2, True), (75, False), (127, True), (130, True), (134, False), (137, False), (143, False)],
)
def test_kuberay_retries_what_was_killed_and_nothing_else(code: int, stops: bool, tmp_path: Path) -> None:
    """The operator retries a job that is FAILED, and not one that is STOPPED: such a job stops itself."""
    (text,) = scripts("kuberay", name="mine", storage_path=tmp_path / "storage").values()
    (tmp_path / "bin").mkdir()
    for name, body in {
        "resnet-ops": f"exit {code}",
        "ray": 'echo "${RAY_ADDRESS-unset} $*" > "$TOLD"',
        "sleep": "exit 0",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    told = tmp_path / "told"
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "TOLD": str(told), "RAY_ADDRESS": "10.0.0.1:6379"}
    ended = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert ended.returncode == code
    (job,) = [d for d in documents(rendered("kuberay", name="mine")["rayjob.yaml"]) if d["kind"] == "RayJob"]
    stop = f"unset job stop --no-wait --address http://127.0.0.1:8265 {job['spec']['jobId']}\n"
    assert (told.read_text() if told.exists() else "") == (stop if stops else "")
    assert ("not retried" in ended.stderr) == stops


def test_the_driver_is_stopped_before_the_heads_pod_ends(tmp_path: Path) -> None:
    """What preStop runs reaches the driver that the script started, and waits until it has ended."""
    (text,) = scripts("kuberay", name="mine", storage_path=tmp_path / "storage").values()
    (job,) = [d for d in documents(rendered("kuberay")["rayjob.yaml"]) if d["kind"] == "RayJob"]
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    *shell, command = head["lifecycle"]["preStop"]["exec"]["command"]
    pid = tmp_path / "driver.pid"
    (tmp_path / "resnet-ops").write_text(
        f'#!/bin/bash\ntrap "sleep 0.3; touch {tmp_path}/saved; exit 75" TERM\nwhile :; do sleep 0.05; done\n'
    )
    (tmp_path / "resnet-ops").chmod(0o755)
    script = subprocess.Popen(
        ["bash", "-c", text.replace("/tmp/driver.pid", str(pid))], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    wait_for(lambda: pid.exists() and pid.read_text().strip(), 10)
    time.sleep(0.3)  # until the stand-in traps signals
    subprocess.run([*shell, command.replace("/tmp/driver.pid", str(pid))], check=True, timeout=20)
    assert (tmp_path / "saved").exists()
    assert script.wait(10) == 75


# For each item of the checklists: the lines that must be in the files for what it says to be so.
PROPERTIES: dict[Kind, dict[str, list[str]]] = {
    "kuberay": {
        "image": ['image: "example.org/r:1"'],
        "storage": ["accessModes: [ReadWriteMany]", "chown 1000 /mnt/resnet-ops"],
        "size": ['cpu: "64"', "memory: 256Gi", 'nvidia.com/gpu: "8"'],
        "token": ["mode: token"],
        "network": ["serviceType: ClusterIP"],
        "drain": ["exec: {command: [resnet-ops, cluster, drain]}", "terminationGracePeriodSeconds: 90"],
        "retries": ["backoffLimit: 3", "ray job stop"],
        "deadline": ["activeDeadlineSeconds: 86400"],
    },
    "slurm": {
        "environment": ["ENVIRONMENT="],
        "storage": ["STORAGE="],
        "size": ["--cpus-per-task=64", "--mem=256G", "--gpus-per-node=8"],
        "time": ["--time=1440", "#SBATCH --requeue"],
        "signal": ["--signal=B:USR1@120"],
        "retries": ["RETRIES=3", "75) requeue", "scontrol requeue"],
        "token": ["umask 077", "secrets.token_hex(32)"],
        "ports": ["--dashboard-host=127.0.0.1"],
    },
    "aws": {
        "token": ["~/ray_token: ./ray_token", "install -m 600 ~/ray_token ~/.ray/auth_token", "RAY_AUTH_MODE=token"],
        "ssh": ['SecurityGroupIds: ["sg-1"]', '"IpRanges": [{"CidrIp": cidr}]'],
        "metadata": ["HttpTokens: required", "MetadataOptions: *metadata"],
        "rights": ["IamInstanceProfile: {Name: resnet-ops-head}", "IamInstanceProfile: {Name: resnet-ops-worker}"],
        "image": ["docker login --username AWS --password-stdin 123456789012.dkr.ecr.eu-central-1.amazonaws.com"],
        "storage": ["mount -t nfs4 -o nfsvers=4.1,hard,noresvport fs-1:/"],
        "quota": ["InstanceType: g6.48xlarge", "InstanceMarketOptions: {MarketType: spot}"],
        "efa": ["InterfaceType: efa", 'SubnetId: "subnet-1"', "--device=/dev/infiniband/uverbs0", "FI_PROVIDER=efa"],
        "dashboard": ["--dashboard-host=127.0.0.1"],
    },
    "gcp": {
        "token": ["~/ray_token: ./ray_token", "install -m 600 ~/ray_token ~/.ray/auth_token", "RAY_AUTH_MODE=token"],
        "ssh": ["firewall-rules update default-allow-ssh --source-ranges 203.0.113.7/32"],
        "rights": ["email: resnet-ops-worker@p-1.iam.gserviceaccount.com", "gs://my-bucket"],
        "image": ["gcloud auth configure-docker europe-west4-docker.pkg.dev"],
        "storage": ["mount -t nfs4 -o nfsvers=4.1,hard,noresvport fs-1:/"],
        "quota": ["machineType: g2-standard-96", "preemptible: true"],
        "dashboard": ["--dashboard-host=127.0.0.1"],
    },
    "compose": {
        "token": ["install -m 600 /run/secrets/ray_token", "mkdir -m 700 secrets"],
        "size": ["cpus: 64", "mem_limit: 256gb"],
        "gpus": ["driver: nvidia"],
        "dashboard": ['"127.0.0.1:8265:8265"'],
        "image": ["build: {context: .}"],
    },
}
CLOUD = {
    "nfs_export": "fs-1:/", "ssh_cidr": "203.0.113.7/32", "bucket": "my-bucket", "spot": True,
}  # fmt: skip
FULL: dict[Kind, dict[str, Any]] = {
    "kuberay": {"image": "example.org/r:1"},
    "slurm": {},
    "aws": CLOUD
    | {"image": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/r:1", "security_group": "sg-1", "subnet": "subnet-1"},
    "gcp": CLOUD | {"image": "europe-west4-docker.pkg.dev/p/r/r:1", "project": "p-1"},
    "compose": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_item_of_the_checklist_is_so(kind: Kind) -> None:
    texts = rendered(kind, gpus_per_node=8, **FULL[kind])
    items = {
        item
        for text in texts.values()
        for item in re.findall(r"^# - \[(\w+)\] \S", text.partition("Before use, check:\n")[2], re.MULTILINE)
    }
    assert items == set(PROPERTIES[kind])
    for item, lines in PROPERTIES[kind].items():
        for line in lines:
            assert any(line in re.sub(r"^# - .*$", "", text, flags=re.MULTILINE) for text in texts.values()), (
                item,
                line,
            )


def test_nothing_of_the_cloud_machines_is_open_to_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What prepare.py makes, at a stand-in for AWS: who reaches the machines, and what they may do."""
    import boto3
    from moto import mock_aws

    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-west-2",
    }.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "prepare.py"
    script.write_text(rendered("aws", name="mine", gpus_per_node=8, bucket="my-bucket")["prepare.py"])
    checked = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select=E,F,I", "--line-length=120", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    monkeypatch.setattr(sys, "argv", [str(script), "--ssh-cidr", "203.0.113.7/32"])
    with mock_aws():
        for _ in range(2):  # again, it changes nothing
            runpy.run_path(str(script), run_name="__main__")
        (group,) = boto3.client("ec2", region_name="us-west-2").describe_security_groups(
            Filters=[{"Name": "group-name", "Values": ["mine"]}]
        )["SecurityGroups"]
        rules = [
            (
                rule.get("FromPort"),
                [each["CidrIp"] for each in rule["IpRanges"]],
                [each["GroupId"] for each in rule["UserIdGroupPairs"]],
            )
            for rule in group["IpPermissions"]
        ]
        assert sorted(rules, key=str) == [(22, ["203.0.113.7/32"], []), (None, [], [group["GroupId"]])]
        iam = boto3.client("iam")
        policies = {
            name: iam.get_role_policy(RoleName=f"mine-{name}", PolicyName="own")["PolicyDocument"]["Statement"]
            for name in ("head", "worker")
        }
        arn = iam.get_role(RoleName="mine-worker")["Role"]["Arn"]
        images, data = policies["worker"]
        assert all(action.startswith("ecr:") for action in images["Action"])
        assert data["Resource"] == ["arn:aws:s3:::my-bucket", "arn:aws:s3:::my-bucket/*"]
        assert all(action.startswith("s3:") for action in data["Action"])
        *_, machines, passing = policies["head"]
        assert all(action.startswith("ec2:") for action in machines["Action"])
        assert (passing["Action"], passing["Resource"]) == (["iam:PassRole"], [arn])
        for name in ("head", "worker"):
            (profile,) = iam.list_instance_profiles_for_role(RoleName=f"mine-{name}")["InstanceProfiles"]
            assert profile["InstanceProfileName"] == f"mine-{name}"
    for wrong in ("0.0.0.0/0", "::/0"):
        monkeypatch.setattr(sys, "argv", [str(script), "--ssh-cidr", wrong])
        with pytest.raises(SystemExit):
            runpy.run_path(str(script), run_name="__main__")
        with pytest.raises(UserError, match="all addresses"):
            rendered("aws", ssh_cidr=wrong)


@pytest.mark.parametrize(
    ("type_", "has"), [("g6.48xlarge", True), ("p5.48xlarge", True), ("g6.xlarge", False), ("m5.xlarge", False)]
)
def test_workers_use_the_fabric_that_they_have(type_: str, has: bool) -> None:
    (config,) = documents(
        rendered("aws", instance_type=type_, security_group="sg-1", subnet="subnet-1")["cluster.yaml"]
    )
    worker = config["available_node_types"]["worker"]["node_config"]
    assert ("NetworkInterfaces" in worker, "SecurityGroupIds" in worker) == (has, not has)
    assert ("worker_run_options" in config["docker"]) == has
    groups = worker["NetworkInterfaces"][0]["Groups"] if has else worker["SecurityGroupIds"]
    assert groups == ["sg-1"]
    head = config["available_node_types"]["head"]["node_config"]
    assert {node["MetadataOptions"]["HttpTokens"] for node in (worker, head)} == {"required"}


def test_the_command_that_is_trained_with_exists(cli: Cli) -> None:
    page = cli("train", "--help").out
    for kind in KINDS:
        for text in scripts(kind, gpus_per_node=1).values():
            body = text[text.index("train=(") : text.index("\n)\n")]
            for option in set(re.findall(r"(?<= )--[a-z-]+", body)):
                assert option in page, option


@pytest.mark.parametrize("kind", KINDS)
def test_versions_are_those_installed_here(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {name: f"{77 + i}.8.9" for i, name in enumerate(("resnet-ops", "ray", "torch"))}
    real = {name: metadata.version(name).partition("+")[0] for name in numbers}
    monkeypatch.setattr(metadata, "version", lambda name: numbers[name] + "+cpu")
    after = "".join(rendered(kind).values())
    for name, number in numbers.items():
        assert (number in after) == (kind != "slurm" or name != "torch"), name
        assert not re.search(rf"(?<![\d.]){re.escape(real[name])}(?![\d.])", after), name
    if "Dockerfile" in FILES[kind]:
        python = f"py{sys.version_info.major}{sys.version_info.minor}"
        assert f"FROM rayproject/ray:{numbers['ray']}-{python}\n" in rendered(kind)["Dockerfile"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_template_holds_a_version(kind: Kind) -> None:
    for name in FILES[kind].values():
        text = templates._template(name)
        others = re.findall(r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])", re.sub(r"KubeRay operator, [\d.]+", "", text))
        assert not others, f"{name}: {others}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_reaches_a_file_or_is_refused(kind: Kind) -> None:
    """No option is accepted and then ignored."""
    other = {
        "name": "other", "nodes": "7", "gpus_per_node": 1, "cpus_per_node": 13, "memory_gib": 23, "shm_gib": 5,
        "image": "example.org/other:1", "storage_path": Path("/other"), "namespace": "other", "storage_class": "other",
        "storage_gib": 77, "retries": 17, "time_limit": "77m", "partition": "other", "account": "other",
        "environment": Path("/other"), "region": "other-1", "zone": "other-1x", "project": "other",
        "instance_type": "p5.other", "machine_image": "other", "nfs_export": "other:/x", "model": "plain20",
        "ssh_cidr": "192.0.2.0/24", "bucket": "other", "spot": True, "security_group": "sg-0", "subnet": "subnet-0",
        "data": "/other", "epochs": 77, "max_failures": 77, "checkpoint_every": "77s",
    }  # fmt: skip
    assert set(other) == {*ClusterValues.model_fields, *TRAINED}
    usual = {"instance_type": "p5.48xlarge"} if kind == "aws" else {}  # which has a fabric, and so a subnet
    plain = rendered(kind, **usual)
    for name, value in other.items():
        if kind in KINDS_OF_OPTION.get(name, set(KINDS)):
            assert rendered(kind, **usual | {name: value}) != plain, name
        else:
            with pytest.raises(UserError, match=f"--{name.replace('_', '-')} does not apply to {kind}"):
                rendered(kind, **{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_writes_and_says_what_comes_next(cli: Cli, tmp_path: Path, kind: Kind) -> None:
    ended = cli("cluster", "template", kind, "-o", tmp_path / "new" / "folder", "--json")
    assert ended.code == 0, ended.err
    files = [Path(file) for file in ended.json["files"]]
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    assert {file.name for file in files} == set(FILES[kind])
    for file in files:
        assert file.stat().st_mode & 0o777 == (0o755 if file.read_text().startswith("#!") else 0o644)
    tool = {"kuberay": "kubectl apply", "slurm": "sbatch", "compose": "docker compose up"}.get(kind, "ray up")
    assert any(tool in step for step in ended.json["next_steps"])
    assert tool in ended.err
    # What is to be filled in is said, each place of it.
    lines = [line.lstrip() for file in files for line in file.read_text().splitlines() if "FILL-IN" in line]
    left = len([line for line in lines if not line.startswith("#")])
    assert len(ended.json["fill_in"]) == left
    assert bool(left) == (kind in {"kuberay", "aws", "gcp"})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kuberay", ["--image", "example.org/r:1"]),
        ("aws", ["--image", "example.org/r:1", "--machine-image", "ami-0", "--nfs-export", "fs-0.example.org:/",
                 "--security-group", "sg-0", "--ssh-cidr", "192.0.2.1/32"]),
        ("gcp", ["--image", "example.org/r:1", "--machine-image", "projects/p/global/images/family/f",
                 "--nfs-export", "192.0.2.1:/share", "--project", "p-1", "--ssh-cidr", "192.0.2.1/32"]),
    ],
)  # fmt: skip
def test_with_all_said_nothing_is_left_to_fill_in(cli: Cli, tmp_path: Path, kind: str, options: list[str]) -> None:
    ended = cli("cluster", "template", kind, "-o", tmp_path, "--json", *options)
    assert ended.json["fill_in"] == []
    assert "FILL-IN" not in "".join(file.read_text() for file in tmp_path.iterdir())
    assert "FILL-IN" not in ended.err


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rayjob.yaml").write_text("mine")
    ended = cli("cluster", "template", "kuberay", "-o", tmp_path)
    assert ended.code == 2
    assert (
        ended.err
        == f"error: {tmp_path}/rayjob.yaml exists already. Choose another folder with -o, or remove it first.\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["rayjob.yaml"]
    assert (tmp_path / "rayjob.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = cli("cluster", "template", "slurm", "-o", tmp_path / "file" / "sub")
    assert ended.code == 1
    assert "cannot be written" in ended.err
    assert "-o" in ended.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", "0"], ["--nodes", "number of nodes", "'0'"]),
        (["--nodes", "4:2"], ["--nodes", "smaller number first"]),
        (["--gpus-per-node", "-1"], ["--gpus-per-node", "greater than or equal to 0"]),
        (["--cpus-per-node", "0"], ["--cpus-per-node"]),
        (["--memory-gib", "1"], ["--memory-gib"]),
        (["--shm-gib", "16"], ["--shm-gib", "16 GiB"]),
        (["--name", "My_Cluster"], ["--name", "lower-case", "'My_Cluster'"]),
        (["--name", "x" * 48], ["--name", "47"]),
        (["--name", "-x"], ["--name"]),
        (["--name", "x\n"], ["--name"]),
        (["--namespace", "a.b"], ["--namespace", "63"]),
        (["--storage-path", "relative"], ["--storage-path", "absolute"]),
        (["--storage-path", "/a b"], ["--storage-path"]),
        (["--image", "a; rm -rf"], ["--image"]),
        (["--image", "a\nb"], ["--image"]),
        (["--time-limit", "1:00"], ["--time-limit"]),
        (["--time-limit", "0h"], ["--time-limit"]),
        (["--checkpoint-every", "soon"], ["--checkpoint-every", "10m"]),
        (["--retries", "-1"], ["--retries"]),
        (["--partition", "gpu"], ["--partition does not apply to kuberay", "slurm"]),
    ],
)
def test_a_wrong_value_gets_one_line_and_leaves_nothing(
    cli: Cli, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    ended = cli("cluster", "template", "kuberay", "-o", tmp_path / "new", *options)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for word in words:
        assert word in ended.err
    assert not (tmp_path / "new").exists()


def test_what_else_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert "no-such" in cli("cluster", "template", "no-such", "-o", tmp_path).err
    ended = cli("cluster", "template", "aws", "-o", tmp_path, "--gpus-per-node", 3)
    assert ended.code == 2
    assert "(known: 0, 1, 4, 8). Set --instance-type." in ended.err
    ended = cli("cluster", "template", "aws", "-o", tmp_path, "--nfs-export", "host")
    assert "--nfs-export must be HOST:/PATH" in ended.err
    assert cli("cluster", "template", "slurm", "-o", tmp_path, "--nodes", "x", "--json").json["exit_code"] == 2
    assert "Traceback" in cli("cluster", "template", "slurm", "-o", tmp_path, "--nodes", "x", "--debug").err
    assert not list(tmp_path.iterdir())


def test_its_options_are_shown(cli: Cli) -> None:
    page = cli("cluster", "template", "--help")
    assert page.code == 0
    for name in (*ClusterValues.model_fields, *TRAINED):
        assert f"--{name.replace('_', '-')}" in page.out
    group = cli("cluster", "--help")
    assert "template" in group.out
    bare = cli("cluster")
    assert (bare.code, bare.out, bare.err) == (0, group.out, "")
    template = sys.modules["resnet_ops.cli.template"]
    train = template.TemplateTrainConfig.of()
    assert {name: getattr(train, name) for name in template.TRAIN_OPTIONS} == TRAINED
    assert tuple(TRAINED) == template.TRAIN_OPTIONS  # in the order in which files hold them


@pytest.mark.parametrize("arguments", [["cluster", "--help"], ["cluster", "template", "--help"]])
def test_help_waits_for_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom resnet_ops.cli.main import run\n"
        f"run({arguments!r})\n"
        "print('HEAVY', {'torch', 'ray', 'jinja2', 'yaml', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY set()"
