"""How to cite the program and the papers whose methods it implements, as CITATION.cff has it."""

from __future__ import annotations

from dlf_dynamics import __version__

CITATIONS = (
    f"The dlf-dynamics developers. dlf-dynamics: neural-network training as a dynamical system. "
    f"Version {__version__}.",
    "Miguel Ruiz-Garcia, Ge Zhang, Samuel S. Schoenholz, Andrea J. Liu. Tilting the playing field: "
    "Dynamical loss functions for machine learning. Proceedings of the 38th International "
    "Conference on Machine Learning, PMLR 139, 9157-9167, 2021. arXiv:2102.03793.",
    "Eduardo Lavin Pallero, Miguel Ruiz-Garcia. Dynamical loss functions shape landscape "
    "topography and improve learning in artificial neural networks. 2024. arXiv:2410.10690.",
)
