"""What to type after `resnet-ops` on a cluster for what was asked for here."""

from collections.abc import Collection, Sequence
from typing import Any

from resnet_ops.config import TrainConfig
from resnet_ops.options import as_options


def train_arguments(config: TrainConfig, resume: bool = False, *, overwrite: bool = False) -> list[str]:
    """What to type after `resnet-ops` for this configuration to be trained by the cluster it is typed on.

    Every option that differs from its default, as `--option=value`; with a recipe every option, for
    one typed beside it may have gone back to its default. A recipe's file stays here. A run that is
    resumed has its options already; it needs to be found, and told where to run if that is to change.
    """
    arguments = ["train", f"--resume={config.name}"] if resume else ["train"]
    for name in TrainConfig.model_fields:
        value = getattr(config, name)
        if resume:  # what was typed, also where it is the default: the run may have begun with something else
            told = name in config.model_fields_set & {*config.changeable_on_resume(), "runs_dir"} and value is not None
        else:
            told = value is not None if config.recipe else value != TrainConfig.default(name)
        if told and name != "cluster" and not (name == "recipe" and value.endswith(".toml")):
            arguments += as_options({name: value})
    if overwrite and not resume:
        arguments.append("--overwrite")
    return [*arguments, "--cluster=auto", "--json"]


def tune_arguments(
    config: TrainConfig,
    resume: bool = False,
    *,
    typed: dict[str, Any],
    changeable: Collection[str],
    pairs: Sequence[str] = (),
    overwrite: bool = False,
    command: Sequence[str] = ("tune",),
) -> list[str]:
    """The same for a search: what was typed, `typed`, and the options in a recipe's file or `--space` as more `pairs`.

    `config` says what it is called, and where it lies; `changeable` are the options that go to one that is resumed;
    `command` is another one's that takes options likewise.
    """
    places = {"runs_dir": config.runs_dir}
    if resume:
        told = {name: value for name, value in typed.items() if name in changeable} | places
        return [*command, f"--resume={config.name}", *_told(told), "--cluster=auto", "--json"]
    told = {name: value for name, value in typed.items() if name != "study"}  # which `command` names
    arguments = [*command, *pairs, *_told(told | places | {"name": config.name})]
    return [*arguments, *(["--overwrite"] if overwrite else []), "--cluster=auto", "--json"]


def _told(options: dict[str, Any]) -> list[str]:
    return as_options({name: value for name, value in options.items() if name != "cluster" and value is not None})
