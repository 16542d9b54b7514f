"""Which figures a study has, made of its networks."""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from resnet_ops.reporting import study_figures as charts
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.training_figures import NetworkCurves, degradation
from resnet_ops.study.config import Study
from resnet_ops.study.results import Layer, NetworkGroup
from resnet_ops.study.verdict import has_learned


def pictures(study: Study, groups: Sequence[NetworkGroup], images: int) -> list[Picture]:
    """The study's own figure first. Networks that did not reach the end of their training are left out."""
    profiled = [group for group in groups if all(network.layers for network in group.networks)]
    drawn = []
    if study == "shortcuts":
        drawn.append(charts.shortcuts([(group.shortcut or "", _curves(group)) for group in groups], images))
    learned = [group for group in profiled if has_learned(group)]
    if study == "responses" and learned:
        deviations = [_profile(group, "trained", lambda layer: layer.response_std) for group in learned]
        drawn.append(charts.responses(deviations, [_branches(group) for group in learned if group.kind == "resnet"]))
    if study != "shortcuts":
        drawn.append(degradation([_curves(group) for group in groups], images))
    if study != "shortcuts" and profiled:
        drawn.append(
            charts.norms(
                [
                    ("weight gradient norm", _both(profiled, lambda layer: layer.weight_gradient)),
                    ("response RMS", _both(profiled, lambda layer: layer.response_rms)),
                ]
            )
        )
    return drawn


def _curves(group: NetworkGroup) -> NetworkCurves:
    return NetworkCurves(group.kind, group.depth, [network.curve for network in group.networks])


def _both(groups: Sequence[NetworkGroup], number: Callable[[Layer], float]) -> list[charts.Profile]:
    return [_profile(group, when, number) for group in groups for when in get_args(charts.When)]


def _profile(group: NetworkGroup, when: charts.When, number: Callable[[Layer], float]) -> charts.Profile:
    seeds = [[number(layer) for layer in getattr(n.layers, when)] for n in group.networks]
    return charts.Profile(group.kind, group.depth, when, np.array(seeds))


def _branches(group: NetworkGroup) -> charts.Profile:
    """Each residual branch's deviation beside its shortcut's."""
    trained = [network.layers.trained for network in group.networks if network.layers]
    shares = [[layer.of_shortcut for layer in layers if layer.of_shortcut is not None] for layers in trained]
    return charts.Profile(group.kind, group.depth, "trained", np.array(shares))
