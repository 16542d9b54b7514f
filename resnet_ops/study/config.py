"""The options of a study, each with its default, limits and one-line description, as in `resnet_ops.config`.

Which trainings follow from them is in `plan`.
"""

from typing import Annotated, Literal

from resnet_ops.config_base import Positive, option
from resnet_ops.tuning.config import TrialsConfig

Study = Literal["degradation", "responses", "shortcuts"]


class StudyConfig(TrialsConfig):
    """A study: which networks are trained, from how many seeds, and on what. `given` is what all trainings share."""

    study: Annotated[
        Study,
        option(
            "degradation: do deeper networks get worse, plain and residual (He et al. 2015, fig. 1, 4, 6)? responses: "
            "do residual branches respond less as depth grows (fig. 7)? shortcuts: types A, B and C compared (table "
            "3)."
        ),
    ] = "degradation"
    depths: Annotated[
        str | None,
        option(
            "Depths to train, such as 20,32,44,56,110; CIFAR networks, except depths that the paper has an ImageNet "
            "network of. By default 8,20,56,110; for responses 20,56,110, for shortcuts 20,56.",
            panel="Study",
        ),
    ] = None
    baselines: Annotated[
        bool,
        option("degradation: also train AlexNet, VGG-19 and GoogLeNet, if the images are large enough.", panel="Study"),
    ] = False
    options: Annotated[
        str | None,
        option(
            "shortcuts: types to compare: A zero-padded identity, B projection where the shape changes, C always "
            "projection. By default A,B,C.",
            panel="Study",
        ),
    ] = None
    seeds: Annotated[
        Positive, option("Training runs per network, with seeds --seed, --seed + 1, ...", panel="Study")
    ] = 2
    epochs: Annotated[
        Positive | None, option("Training epochs; by default those of the recipe, or 12.", panel="Training")
    ] = None
    lr: Annotated[
        float | None,
        option(
            "Peak learning rate; by default that of the recipe, or 0.05.",
            panel="Training",
            gt=0,
            allow_inf_nan=False,
        ),
    ] = None
    nodes: Annotated[
        Positive | None, option("Nodes of the cluster to use; by default all.", panel="Cluster", changeable=True)
    ] = None
