"""The figures of a study, from its networks. How they are drawn is in `reporting.study_figures`."""

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np

from resnet_ops.reporting import study_figures as charts
from resnet_ops.reporting.page import Picture
from resnet_ops.reporting.training_figures import NetworkCurves, degradation
from resnet_ops.study.config import Study
from resnet_ops.study.results import Layer, NetworkGroup
from resnet_ops.study.verdict import has_learned


def study_figures(study: Study, groups: Sequence[NetworkGroup], images: int) -> list[Picture]:
    """Return the figures of a study, its main one first; networks whose training did not finish are left out."""
    profiled = [group for group in groups if all(network.layers for network in group.networks)]
    figures = []
    if study == "shortcuts":
        figures.append(charts.shortcuts([(group.shortcut or "", _curves(group)) for group in groups], images))
    learned = [group for group in profiled if has_learned(group)]
    if study == "responses" and learned:
        deviations = [_profile(group, "trained", lambda layer: layer.response_std) for group in learned]
        figures.append(
            charts.responses(deviations, [_branch_ratios(group) for group in learned if group.kind == "resnet"])
        )
    if study != "shortcuts":
        figures.append(degradation([_curves(group) for group in groups], images))
    if study != "shortcuts" and profiled:
        figures.append(
            charts.norms(
                [
                    ("weight gradient norm", _layer_profiles(profiled, lambda layer: layer.weight_gradient)),
                    ("response RMS", _layer_profiles(profiled, lambda layer: layer.response_rms)),
                ]
            )
        )
    return figures


def _curves(group: NetworkGroup) -> NetworkCurves:
    return NetworkCurves(group.kind, group.depth, [network.curve for network in group.networks])


def _layer_profiles(groups: Sequence[NetworkGroup], measure: Callable[[Layer], float]) -> list[charts.Profile]:
    return [_profile(group, when, measure) for group in groups for when in get_args(charts.When)]


def _profile(group: NetworkGroup, when: charts.When, measure: Callable[[Layer], float]) -> charts.Profile:
    by_seed = [[measure(layer) for layer in getattr(network.layers, when)] for network in group.networks]
    return charts.Profile(group.kind, group.depth, when, np.array(by_seed))


def _branch_ratios(group: NetworkGroup) -> charts.Profile:
    """Return the standard deviation of each residual branch relative to its shortcut's."""
    trained = [network.layers.trained for network in group.networks if network.layers]
    ratios = [[layer.of_shortcut for layer in layers if layer.of_shortcut is not None] for layers in trained]
    return charts.Profile(group.kind, group.depth, "trained", np.array(ratios))
