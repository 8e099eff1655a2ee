"""All reproductions by their names."""

from __future__ import annotations

from dlf_dynamics.analysis.reproduction import (
    cifar10_myrtle5,
    fig4,
    initialisation_table,
    spiral_phase_diagram,
    width_learning_rate,
)
from dlf_dynamics.analysis.reproduction.task import Reproduction

REPRODUCTIONS: dict[str, Reproduction] = {
    reproduction.name: reproduction
    for reproduction in (
        *fig4.REPRODUCTIONS,
        initialisation_table.REPRODUCTION,
        spiral_phase_diagram.REPRODUCTION,
        width_learning_rate.REPRODUCTION,
        cifar10_myrtle5.REPRODUCTION,
    )
}
"""Choices of `dlf-dynamics reproduce`."""
