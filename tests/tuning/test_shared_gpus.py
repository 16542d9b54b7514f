"""Several trials on one GPU: how many, why, and what Ray gives them, on a machine that only claims to have GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnet_ops.config import TrainConfig
from resnet_ops.models import build, count_parameters
from resnet_ops.orchestration.nodes import Node
from resnet_ops.orchestration.trial_slots import TrialResources, TrialSlots, share_gpus
from resnet_ops.run_records import DataRecord
from resnet_ops.training import memory
from resnet_ops.tuning import preflight
from resnet_ops.tuning.config import TuneConfig
from resnet_ops.tuning.results import SearchObserver
from resnet_ops.tuning.space import read_space

GIB = 2**30
DATA = DataRecord(
    name="x", fingerprint="0", class_names=("a",) * 10, train_images=50_000, val_images=10_000, channels=3,
    height=32, width=32,
)  # fmt: skip


def slots(*nodes: tuple[int, int], cpus: int = 1) -> TrialSlots:
    """Room for one trial on each GPU of nodes with so many (CPUs, GPUs)."""
    listed = tuple(Node(str(i), f"node{i}", c, g, c, g) for i, (c, g) in enumerate(nodes))
    return TrialSlots(listed, True, "cuda", cpus, 1.0, sum(min(g, c // cpus) for c, g in nodes))


@pytest.mark.parametrize(
    ("nodes", "trials", "in_memory", "expected"),
    [
        ([(16, 1)], 12, 5, (5, "memory", 5)),
        ([(16, 1)], 12, 100, (8, "most", 8)),
        ([(3, 1)], 12, 100, (3, "cores", 3)),
        ([(16, 1)], 4, 100, (4, "trials", 4)),
        ([(64, 8)], 12, 100, (2, "trials", 16)),  # or Ray would put all of them on the first two
        ([(64, 8)], 100, 0, (1, "memory", 8)),  # as ever: one that does not fit says so when it runs
        ([(16, 4), (4, 4), (8, 0)], 100, 100, (1, "cores", 8)),
        ([(8, 1), (8, 1)], 7, 100, (4, "trials", 8)),
    ],
)
def test_a_gpu_takes_as_many_as_memory_cores_and_trials_allow(
    nodes: list[tuple[int, int]], trials: int, in_memory: int, expected: tuple[int, str, int]
) -> None:
    shared, share = share_gpus(slots(*nodes), TrialResources(), trials, in_memory)
    assert (share.trials_per_gpu, share.limit, shared.max_concurrent) == expected
    assert shared.resources == {"cpu": 1, "gpu": int(10_000 / expected[0]) / 10_000}


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 8)), min_size=1, max_size=4),
    st.integers(1, 50), st.integers(0, 50), st.integers(1, 4),
)  # fmt: skip
def test_no_gpu_and_no_node_is_given_more_than_it_has(
    nodes: list[tuple[int, int]], trials: int, in_memory: int, cpus: int
) -> None:
    before = slots(*nodes, cpus=cpus)
    shared, share = share_gpus(before, TrialResources(), trials, in_memory)
    assert share.trials_per_gpu * shared.gpus <= 1
    assert share.trials_per_gpu * (shared.gpus + 1e-4) > 1 - 1e-9  # nor is any of it left over
    assert share.trials_per_gpu <= max(1, in_memory)
    assert before.max_concurrent <= shared.max_concurrent <= sum(c // cpus for c, _ in nodes)


def test_a_trial_takes_what_its_parts_take() -> None:
    config = TrainConfig.of(model="resnet20", batch_size=256)
    alone = memory.training_bytes(config, DATA, 80 * GIB)
    images = 60_000 * 3 * 32**2
    weights = 4 * count_parameters(build("resnet20", num_classes=10))
    one = memory.memory_per_image(config, DATA, torch.device("cpu"))
    assert alone == pytest.approx(memory.CONTEXT_BYTES + 3 * weights + images + 2 * 256 * one, rel=1e-6)

    def more(**options: object) -> float:
        return memory.training_bytes(config.model_copy(update=options), DATA, 80 * GIB) - alone

    assert more(ema=0.99) == pytest.approx(weights, abs=2)
    assert more(stream="on") == pytest.approx(-images, abs=2)
    assert more(accumulate=4) == pytest.approx(-2 * 192 * one, rel=1e-6)
    assert memory.training_bytes(config, DATA, images) == pytest.approx(alone - images, abs=2)  # kept on the host


def test_the_largest_trial_counts_and_the_decision_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "smallest_gpu", lambda _: 16 * GIB)
    space = read_space(TuneConfig.of(depths="8,20"), ("batch_size=64,512", "recipe=fast,imagenet"))
    base = TrainConfig.of(model="resnet8")
    largest = preflight.largest_trial_bytes(space, base, DATA, 16 * GIB)
    assert largest == memory.training_bytes(TrainConfig.of(model="resnet20", batch_size=512), DATA, 16 * GIB)
    by_recipe = read_space(TuneConfig.of(depths="8"), ("recipe=fast,imagenet",))
    assert preflight.largest_trial_bytes(by_recipe, base, DATA, 16 * GIB) == memory.training_bytes(
        TrainConfig.of(model="resnet8", batch_size=1024), DATA, 16 * GIB
    )
    messages: list[str] = []
    observer = SearchObserver()
    monkeypatch.setattr(observer, "warn", messages.append)

    def decided(resources: TrialResources, trials: int = 12) -> TrialSlots:
        return preflight.with_shared_gpus(slots((16, 1)), resources, trials, space, base, DATA, observer)

    count = int(0.8 * 16 * GIB / largest)
    assert 1 < count < 8
    assert decided(TrialResources()).max_concurrent == count
    (message,) = messages
    assert message.startswith(
        f"{count} trials at once on each GPU: each takes about {largest / GIB:.1f} GiB of 16 GiB."
    )
    for asked in (TrialResources(gpus=1.0), TrialResources(nodes=2)):
        assert decided(asked) == slots((16, 1))
    assert decided(TrialResources(), trials=1) == slots((16, 1))
    assert len(messages) == 1


@pytest.mark.slow
def test_two_trials_share_a_gpu_at_the_same_time(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.tuning.shared_gpus_search", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [["finished", 3, ""]] * 2
    trials = [tmp_path / "s" / "trials" / name for name in ("001", "002")]
    seen = [json.loads((trial / "seen.json").read_text()) for trial in trials]
    assert [(each["gpu"], each["ids"], each["visible"]) for each in seen] == [(0.5, [0], "0")] * 2
    assert seen[0]["pid"] != seen[1]["pid"]  # two at once: one after the other would be in one process
    events = [json.loads(line)["what"] for line in (trials[0] / "events.jsonl").read_text().splitlines()]
    assert any("which other trials share, is full" in what for what in events)
    assert not (trials[1] / "refused").exists()
