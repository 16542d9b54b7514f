"""The private parts of Ray are still what `ray_internals` takes them for: the first thing to read with a new Ray."""

import ast
import dataclasses
import inspect
import os
import pkgutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from resnet_ops.orchestration import cluster_kv, ray_internals
from resnet_ops.orchestration.connect import SETTINGS
from resnet_ops.orchestration.placement import NODE_LABEL
from tests.ports import listening
from tests.waiting import wait_for

AUTH = "ray._private.authentication.authentication_token_setup"
KV = "ray.experimental.internal_kv"
TRAIN = "ray.train.v2._internal"
CONTROLLER = f"{TRAIN}.execution.controller:TrainController"
SCALING = f"{TRAIN}.execution.scaling_policy"
# What is called, or overridden where a class is derived from, and the parameters that it has.
SIGNATURES = {
    "ray._private.services:canonicalize_bootstrap_address": "addr temp_dir",
    "ray._private.services:resolve_ip_for_localhost": "host",
    "ray._common.utils:get_ray_address_file": "temp_dir",
    "ray.job_config:JobConfig._serialize": "self",
    "ray._private.utils:set_sigterm_handler": "sigterm_handler",
    f"{AUTH}:maybe_enable_token_auth_if_token_available": "warn_if_disabled",
    "ray._raylet:Config.initialize": "config_list",
    "ray._raylet:AuthenticationTokenLoader.instance": "",
    "ray._raylet:AuthenticationTokenLoader.has_token": "self ignore_auth_mode",
    "ray._raylet:AuthenticationTokenLoader.get_token_for_http_header": "self ignore_auth_mode",
    "ray._private.state:GlobalState.available_resources_per_node": "self",
    "ray._private.state:GlobalState.job_table": "self",
    "ray._private.state:GlobalState.get_draining_nodes": "self",
    "ray._private.grpc_utils:init_grpc_channel": "address options asynchronous credentials",
    "ray._raylet:InnerGcsClient.get_all_node_info": "self timeout node_selectors state_filter",
    "ray._raylet:InnerGcsClient.drain_node": "self node_id reason reason_message deadline_timestamp_ms timeout",
    "ray._private.node:Node.dead_processes": "self",
    "ray.autoscaler.v2.sdk:get_cluster_status": "gcs_address timeout",
    "ray.autoscaler.v2.utils:is_autoscaler_v2": "fetch_from_server gcs_client",
    f"{KV}:_internal_kv_get": "key namespace",
    f"{KV}:_internal_kv_put": "key value overwrite namespace",
    f"{KV}:_internal_kv_list": "prefix namespace",
    f"{KV}:_internal_kv_del": "key del_by_prefix namespace",
    "ray.job_submission:JobSubmissionClient": (
        "address create_cluster_if_needed cookies metadata headers verify kwargs"
    ),
    "ray.job_submission:JobSubmissionClient._do_request": "self method endpoint data json_data kwargs",
    "ray.train.torch:TorchTrainer._create_default_callbacks": "self",
    "ray.train.torch:TorchTrainer._initialize_and_run_controller": "self controller_init_kwargs",
    "ray.train.torch.config:_TorchBackend.on_start": "self worker_group backend_config",
    CONTROLLER: "train_fn_ref train_run_context scaling_policy failure_policy callbacks validation_config",
    f"{CONTROLLER}.run": "self",
    f"{CONTROLLER}.abort": "self",
    f"{CONTROLLER}.get_result": "self",
    f"{TRAIN}.constants:get_env_vars_to_propagate": "",
    f"{TRAIN}.util:ObjectRefWrapper.get": "self",
    "ray._private.state:GlobalState._connect_and_get_accessor": "self",
    f"{TRAIN}.execution.failure_handling:FailurePolicy": "failure_config",
    f"{TRAIN}.execution.failure_handling:FailurePolicy.make_decision": "self training_failed_error",
    f"{SCALING}:NoopDecision": "",
    f"{SCALING}:ResizeDecision": "num_workers resources_per_worker",
    f"{SCALING}:ScalingPolicy": "scaling_config",
    f"{SCALING}:ScalingPolicy.after_controller_start": "self train_run_context",
    f"{SCALING}:ScalingPolicy.after_controller_state_update": "self previous_state current_state",
    f"{SCALING}:ScalingPolicy.before_controller_shutdown": "self",
    f"{SCALING}:ScalingPolicy.before_controller_abort": "self",
    f"{SCALING}:ScalingPolicy.make_decision_for_non_running_worker_group": "self",
    f"{SCALING}:ScalingPolicy.make_decision_for_running_worker_group": "self worker_group_state worker_group_status",
    f"{SCALING}:ScalingPolicy._get_num_workers_for_resource_request": "self",
}


def part(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(f"Ray {ray.__version__} has no {name} any more")


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_called_takes_what_it_took(name: str) -> None:
    # Ray adds _ray_trace_ctx to a class in place as soon as this process makes an actor of it.
    parameters = " ".join(name for name in inspect.signature(part(name)).parameters if name != "_ray_trace_ctx")
    assert parameters == SIGNATURES[name], (
        f"Ray {ray.__version__}: {name} takes ({parameters}), it took ({SIGNATURES[name]})"
    )


@pytest.mark.parametrize("name", ray_internals.TRAIN)
def test_parts_of_ray_train_are_where_they_were(name: str) -> None:
    own = "_TorchBackend" if name == "TorchBackend" else name
    assert getattr(ray_internals, name) is part(f"{ray_internals.TRAIN[name]}:{own}")
    if name.endswith("Error"):
        assert issubclass(getattr(ray_internals, name), Exception)


def test_what_mypy_sees_of_ray_train_is_what_there_is() -> None:
    (block,) = (
        node
        for node in ast.parse(Path(ray_internals.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imported = {
        alias.name.removeprefix("_"): node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == ray_internals.TRAIN
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        _ = ray_internals.Unknown


def test_policies_have_no_more_to_implement() -> None:
    assert part(f"{SCALING}:ScalingPolicy").__abstractmethods__ == {
        "_get_num_workers_for_resource_request",
        "make_decision_for_running_worker_group",
        "make_decision_for_non_running_worker_group",
    }
    assert ray_internals.FailurePolicy.__abstractmethods__ == {"make_decision"}
    assert {"RETRY", "RAISE"} <= set(ray_internals.FailureDecision.__members__)


def test_a_function_handed_to_workers_needs_only_get() -> None:
    wrapper = part(f"{TRAIN}.util:ObjectRefWrapper")
    assert {name for name in vars(wrapper) if not name.startswith("_")} == {"get"}


def test_a_placement_is_read_from_the_scaling_configuration() -> None:
    config = ray.train.ScalingConfig(num_workers=2)
    config.label_selector = [{NODE_LABEL: "a"}, {NODE_LABEL: "b"}]
    assert config._label_selector_per_worker(2) == [{NODE_LABEL: "a"}, {NODE_LABEL: "b"}]
    fields = {field.name for field in dataclasses.fields(part(f"{TRAIN}.execution.context:TrainRunContext"))}
    assert "scaling_config" in fields


def test_names_and_numbers_that_are_written_out_are_rays() -> None:
    assert part("ray._raylet:RAY_NODE_ID_KEY") == NODE_LABEL
    assert part("ray._private.runtime_env.constants:RAY_JOB_CONFIG_JSON_ENV_VAR") == ray_internals.JOB_CONFIG_VARIABLE
    assert part("ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS") == "__autoscaling_status"
    reasons = part("ray.core.generated.common_pb2:NodeDeathInfo.Reason")
    assert reasons.Value("UNEXPECTED_TERMINATION") == ray_internals.UNEXPECTED_TERMINATION


def test_variables_that_are_set_for_ray_train_are_read_by_it() -> None:
    known = {value for value in vars(part(f"{TRAIN}.constants")).values() if isinstance(value, str)}
    ours = {name for name in SETTINGS if name.startswith("RAY_TRAIN_")} | {
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S",
        "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR",
        "RAY_TRAIN_NCCL_RAS_ACTION",
        "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S",
    }
    assert ours <= known, f"Ray {ray.__version__} does not know {ours - known}"
    assert (
        part("ray.train.constants:TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S") == "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"
    )


def test_what_is_replaced_or_read_of_rays_worker_is_there() -> None:
    worker = part("ray._private.worker")
    source = inspect.getsource(worker)
    assert "def print_to_stdstream(" in source, "the last words of dying machines are printed by something else now"
    assert hasattr(worker, "_global_node")
    assert "_server_ray_version" in inspect.getsource(part("ray.dashboard.modules.dashboard_sdk:SubmissionClient"))


@pytest.mark.parametrize("module", ["dashboard_sdk", "job.sdk"])
def test_a_job_client_is_quiet_and_does_not_wait_for_ever(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = part(f"ray.dashboard.modules.{module}:logger")
    assert logger.name == f"ray.dashboard.modules.{module}"
    sent: dict[str, Any] = {}

    def request(*_: object, **options: Any) -> None:
        sent.update(options)
        raise ConnectionError

    monkeypatch.setattr("requests.request", request)
    with pytest.raises(ConnectionError):
        ray_internals.job_client_class((3, 4))("http://127.0.0.1:1", headers={"Authorization": "x"})
    assert sent["timeout"] == (3, 4)
    assert sent["headers"] == {"Authorization": "x"}
    assert not logger.isEnabledFor(30)


def test_addresses_are_settled_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_internals.bootstrap_address("10.0.0.1:6379") == "10.0.0.1:6379"
    assert ray_internals.bootstrap_address("127.0.0.1:6379") == "127.0.0.1:6379"  # not another address of this machine
    with pytest.raises(ValueError, match="nowhere"):
        ray_internals.bootstrap_address("nowhere")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_internals.latest_address() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert ray_internals.latest_address() == "10.0.0.1:6379"
    assert ray_internals.ask_for_cluster_id("127.0.0.1:1", (), 2) == grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_tells_what_is_asked_of_it() -> None:
    context = ray.get_runtime_context()
    free = ray_internals.available_resources_per_node()
    assert set(free) == {node["NodeID"] for node in ray.nodes()}
    assert all(isinstance(amount, float) for amounts in free.values() for amount in amounts.values())
    (job,) = (each for each in ray_internals.job_table() if each["JobID"] == context.get_job_id())
    assert not job["IsDead"]
    assert {"Entrypoint", "DriverIPAddress", "StartTime"} <= set(job)
    types = ray_internals.node_types()
    assert all(name.startswith("node_") for name in types), f"without an autoscaler the types are {types}"
    assert ray_internals.draining_nodes() == set()
    assert ray_internals.head_answers(context.gcs_address, 3)
    (node,) = ray_internals.alive_nodes(ray_internals.own_head_client(), 3)
    assert (node.id, node.host) == (context.get_node_id(), ray.nodes()[0]["NodeManagerHostname"])
    assert ray_internals.alive_nodes(ray_internals.head_client(context.gcs_address), 3) == [node]
    assert not ray_internals.started_ray_is_gone()
    assert not ray_internals.serve_is_running()
    answer = ray_internals.ask_for_cluster_id(context.gcs_address, (), 3)
    assert answer == grpc.StatusCode.UNAUTHENTICATED
    assert ray_internals.ask_for_cluster_id(context.gcs_address, ray_internals.token_headers(), 3) == grpc.StatusCode.OK
    assert context.gcs_address in ray_internals.running_addresses()
    assert {"Alive", "DeathReason", "NodeManagerAddress", "NodeManagerPort", "NodeManagerHostname", "NodeName"} <= set(
        ray.nodes()[0]
    )


@pytest.mark.usefixtures("ray_session")
def test_ray_in_a_command_is_closed_to_others() -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    sockets = listening(str(token))
    assert len(sockets) >= 3  # of gcs_server and raylet
    assert [address for address in sockets if not address.is_loopback] == []


@pytest.mark.usefixtures("ray_session")
def test_what_is_kept_is_found_replaced_and_forgotten() -> None:
    first, second = "test_ray_internals/1", "test_ray_internals/2"
    for key, value in ((first, b"a"), (second, b""), (first, b"b")):
        ray_internals.kv_put(key, value, "resnet-ops")
    assert sorted(ray_internals.kv_list("test_ray_internals/", "resnet-ops")) == [first, second]
    assert ray_internals.kv_get(first, "resnet-ops") == b"b"
    assert ray_internals.kv_get(first) is None
    for key in (first, second):
        ray_internals.kv_del(key, "resnet-ops")
    assert ray_internals.kv_list("test_ray_internals/", "resnet-ops") == []
    assert ray_internals.kv_get(first, "resnet-ops") is None


class Reserver:
    """Reserves resources, as a controller does for its workers."""

    def reserve(self) -> str:
        return str(ray.util.placement_group([{"CPU": 0.01}]).id.hex())


@pytest.mark.usefixtures("ray_session")
def test_what_a_lost_controller_reserved_is_released() -> None:
    first, second = (ray.remote(num_cpus=0)(Reserver).remote() for _ in range(2))
    group, other = ray.get([first.reserve.remote(), second.reserve.remote()])
    assert ray_internals.placement_groups_of(ray_internals.actor_id(first)) == [group]
    cluster_kv.record_controller("test_ray_internals", ray_internals.actor_id(first))
    ray.kill(first)
    for _ in range(2):  # the second time there is nothing left to release
        cluster_kv.release_resources("test_ray_internals")
    wait_for(lambda: ray_internals.placement_groups_of(ray_internals.actor_id(first)) == [], 10)
    assert ray_internals.placement_groups_of(ray_internals.actor_id(second)) == [other]
