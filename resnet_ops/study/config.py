"""What a study is: every option with its default, its limits and its one-line description, as in `config.py`."""

from typing import Annotated, Literal

from pydantic import Field

from resnet_ops.options import ChangeableOnResume, Positive
from resnet_ops.tuning.config import Trials

Study = Literal["degradation", "responses", "shortcuts"]


class StudyConfig(Trials):
    """One study: which networks are trained, from how many seeds, and on what. `given` is what all trainings share."""

    study: Annotated[
        Study,
        Field(description="degradation: do deeper networks get worse, plain and residual (He et al. 2015, fig. 1, 4, "
              "6)? responses: do residual branches do less as depth grows (fig. 7)? shortcuts: zero-padded, projected, "
              "all projected (table 3)."),
    ] = "degradation"  # fmt: skip
    depths: Annotated[
        str | None,
        Field(description="Depths to train, such as 20,32,44,56,110, of the CIFAR family unless the paper has an "
              "ImageNet network of that depth. By default 8,20,56,110; for responses 20,56,110, for shortcuts 20,56."),
    ] = None  # fmt: skip
    baselines: Annotated[
        bool,
        Field(description="In the study degradation train what was best before, too, where the images are large "
              "enough: AlexNet, VGG-19 and GoogLeNet."),
    ] = False  # fmt: skip
    options: Annotated[
        str | None,
        Field(description="Shortcuts to compare, for the study shortcuts only: A zero-padded, B projected where shapes "
              "change, C all projected. By default A,B,C."),
    ] = None  # fmt: skip
    epochs: Annotated[
        Positive | None, Field(description="Passes over the training images; by default the recipe's, or 12.")
    ] = None
    lr: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="Peak learning rate; by default the recipe's, or 0.05."),
    ] = None
    seeds: Annotated[Positive, Field(description="Trainings of each network, from --seed, --seed + 1...")] = 2
    nodes: Annotated[
        Positive | None,
        Field(description="Machines of the cluster to spread the trainings over; by default all there are."),
        ChangeableOnResume(),
    ] = None
