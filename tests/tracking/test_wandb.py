"""Weights & Biases, offline: what its library wrote down; never its server."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from resnet_ops.runs import Run
from tests.conftest import Ended, command

BLOCK, HEADER, LAST_PARTS = 32768, 7, (1, 4)


def records(file: Path) -> list[Any]:
    """All that lies in a .wandb file: protocol buffers in LevelDB's log format, after 7 bytes of its own."""
    content, at, parts, found = file.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if part in LAST_PARTS:
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def test_a_run_is_written_down_to_be_sent_later(
    tmp_path: Path, cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    options = ("--model", "resnet8", "--epochs", 3, "--name", "r", "--runs-dir", tmp_path)
    ended = cli("train", "--track", "wandb", *options, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "finished"
    run = Run(tmp_path / "r")
    (file,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    found = records(file)
    (about,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (about.project, about.display_name) == ("mine", "r")
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert (config["model"], config["data_fingerprint"]) == ("resnet8", run.read().data.fingerprint)
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]
    assert [(line["epoch"], line["loss/val"]) for line in history] == [(e.epoch, e.val_loss) for e in run.epochs()]
    assert json.loads((run.path / "tracking.json").read_text())["wandb"]["id"] == about.run_id


def test_without_a_key_it_is_refused_at_once(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    ended = command("train", "--track", "wandb", "--runs-dir", tmp_path / "runs", env=clean | {"HOME": str(tmp_path)})
    assert ended.returncode == 2
    assert "error: --track wandb: no W&B API key found" in ended.stderr
    assert not (tmp_path / "runs").exists()
