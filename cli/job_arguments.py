"""The command lines of jobs: `resnet-ops` arguments that do on a cluster what was requested here.

The jobs are submitted in submit.py.
"""

from collections.abc import Collection, Sequence
from typing import Any

from resnet_ops.config import EXTENDING, TrainConfig
from resnet_ops.config_base import as_options


def train_arguments(config: TrainConfig, resume: bool = False, *, overwrite: bool = False) -> list[str]:
    """Return the arguments of `resnet-ops` that train this configuration on the cluster they are run on.

    They are the options that were typed or are a recipe's, as `--option=value`, even where that is the default: it
    counts there, too, against what is chosen by the images. The file of a recipe stays here. A resumed run has its
    options already: only its name and folder are passed, and the options that may change.
    """
    arguments = ["train", f"--resume={config.name}"] if resume else ["train"]
    passed = config.model_fields_set & (
        {*config.changeable_on_resume(), *EXTENDING, "runs_dir"} if resume else {*TrainConfig.model_fields}
    )
    for name in TrainConfig.model_fields:
        value = getattr(config, name)
        if (
            name in passed
            and value is not None
            and name != "cluster"
            and not (name == "recipe" and value.endswith(".toml"))
        ):
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
    """Return the arguments of `resnet-ops` that run a search or study on the cluster they are run on.

    Args:
        config: Its name and folder.
        resume: Whether to resume it.
        typed: The options as typed.
        changeable: Those of them that are passed on resume.
        pairs: OPTION=VALUES of the search space, including those from files that stay here.
        overwrite: Whether to replace one of the same name.
        command: The command, such as `("study", "degradation")`.
    """
    folder = {"runs_dir": config.runs_dir}
    if resume:
        changes = {name: value for name, value in typed.items() if name in changeable}
        return [*command, f"--resume={config.name}", *_passed(changes | folder), "--cluster=auto", "--json"]
    options = {name: value for name, value in typed.items() if name != "study"}  # which is in `command`
    arguments = [*command, *pairs, *_passed(options | folder | {"name": config.name})]
    return [*arguments, *(["--overwrite"] if overwrite else []), "--cluster=auto", "--json"]


def _passed(options: dict[str, Any]) -> list[str]:
    return as_options({name: value for name, value in options.items() if name != "cluster" and value is not None})
