"""All reproductions by their names."""

from __future__ import annotations

from dlf_dynamics.analysis.reproduction import (
    cascade,
    central_flow,
    cifar10_myrtle5,
    deeper_and_wider,
    fig4,
    initialisation_table,
    instability_onsets,
    over_parameterised,
    spiral_phase_diagram,
    stochastic_edge,
    under_parameterised,
    width_learning_rate,
)
from dlf_dynamics.analysis.reproduction.task import Reproduction

REPRODUCTIONS: dict[str, Reproduction] = {
    reproduction.name: reproduction
    for reproduction in (
        *fig4.REPRODUCTIONS,
        initialisation_table.REPRODUCTION,
        spiral_phase_diagram.REPRODUCTION,
        instability_onsets.REPRODUCTION,
        cascade.REPRODUCTION,
        under_parameterised.REPRODUCTION,
        over_parameterised.REPRODUCTION,
        deeper_and_wider.REPRODUCTION,
        width_learning_rate.REPRODUCTION,
        stochastic_edge.REPRODUCTION,
        central_flow.REPRODUCTION,
        cifar10_myrtle5.REPRODUCTION,
    )
}
"""Choices of `dlf-dynamics reproduce`."""
