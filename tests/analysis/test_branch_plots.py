"""Branch figures: lines, marks and names where closed forms say that they are."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from dlf_dynamics.analysis.bifurcation.branch_plots import lines_of, name_mark, plot_branches
from dlf_dynamics.analysis.bifurcation.continuation import Branch, continue_cycle
from dlf_dynamics.analysis.bifurcation.doublings import period_doublings
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.orbits import orbit_diagram

SPAN = (0.8, 1.25)


@pytest.fixture(scope="module")
def well():
    """Gradient descent on (x² - 1)²/4: flips at 1 and √5 - 1."""
    return Map(lambda x, rate: x - rate * x * (x**2 - 1))


@pytest.fixture(scope="module")
def branches(well):
    minimum = continue_cycle(well, np.array([1.0]), 0.9, 1, until=SPAN)
    return period_doublings(well, minimum, until=SPAN)


@pytest.fixture
def ax():
    return Figure().add_subplot()


def first(state):
    return float(state[0])


def test_doublings_follow_each_flip_as_deep_as_asked_for(well, branches):
    assert [branch.points.shape[1] for branch in branches] == [1, 2, 4]
    one, two, _ = branches
    shown = two.parameters
    root = np.sqrt(1 + 3 / shown)[:, None] + np.sqrt(1 - 1 / shown)[:, None] * np.array([1, -1])
    np.testing.assert_allclose(np.sort(two.points[:, :, 0]), np.sort(root / 2), atol=1e-9)
    assert period_doublings(well, one, until=SPAN, depth=0) == [one]
    assert len(period_doublings(well, one, until=SPAN, depth=1)) == 2


def test_lines_are_solid_up_to_the_flip_itself_and_dashed_beyond(branches):
    stable, unstable = lines_of(branches[0], first)
    assert (stable.stable, unstable.stable) == (True, False)
    assert stable.parameters[0] == SPAN[0]
    assert stable.parameters[-1] == unstable.parameters[0] == pytest.approx(1, abs=1e-9)
    assert unstable.parameters[-1] == SPAN[1]
    parts = lines_of(branches[1], first)
    assert parts[0].values.shape[1] == 2
    joint = next(part for part in parts if not part.stable).parameters
    assert min(abs(joint[0] - (5**0.5 - 1)), abs(joint[-1] - (5**0.5 - 1))) < 1e-9


def test_each_bifurcation_is_marked_once_by_name_and_parameter(branches, ax):
    plot_branches(ax, branches)
    names = [text.get_text() for text in ax.texts]
    assert names == ["PD 1", "PD 1.23607"]
    styles = {line.get_label(): line.get_linestyle() for line in ax.get_lines()}
    assert styles["period 1, stable"] == styles["period 2, stable"] == "-"
    assert styles["period 1, unstable"] == styles["period 2, unstable"] == "--"
    words = {text.get_text() for text in ax.get_legend().get_texts()}
    assert words >= {"period 1, stable", "period 4, stable", "period 2, unstable"}


def test_a_fold_is_marked_and_what_is_not_converged_is_open_and_doubted(ax):
    fold = Map(lambda x, p: x + p + x**2)
    branch = continue_cycle(fold, np.array([-0.5]), -0.25, 1, until=(-0.5, 0.5))
    (turn,) = branch.bifurcations
    plot_branches(ax, branch)
    assert [text.get_text() for text in ax.texts] == ["LP 0"]
    (mark,) = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert mark.get_markerfacecolor() != "none"
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == pytest.approx((0, 0), abs=1e-7)
    doubtful = type(branch)(
        **{
            **vars(branch),
            "bifurcations": (type(turn)(**{**vars(turn), "converged": False}),),
        }
    )
    other = Figure().add_subplot()
    plot_branches(other, doubtful)
    assert [text.get_text() for text in other.texts] == ["LP? 0"]
    (mark,) = [line for line in other.get_lines() if line.get_marker() == "o"]
    assert mark.get_markerfacecolor() == "none"


def test_both_sweeps_lie_behind_so_that_hysteresis_shows(ax):
    # A flip at p = 0 whose orbit is unstable, and turns at p = -1/4 to a stable one.
    jumps = Map(lambda x, p: -(1 + p) * x - x**3 + x**5)
    rest = continue_cycle(jumps, np.array([0.0]), -0.2, 1, until=(-0.3, 0.1))
    orbits = orbit_diagram(
        jumps,
        jnp.array([0.0]),
        np.linspace(-0.3, 0.1, 9),
        lambda x: x[0],
        transient=1000,
        recorded=4,
        kick=1e-9,
    )
    plot_branches(ax, rest, orbits=orbits, label=False)
    assert ax.get_legend() is None
    assert not ax.texts
    drawn = {line.get_label(): line for line in ax.get_lines()}
    up, down = (drawn[f"orbits, swept {way}"] for way in ("up", "down"))
    at = np.isclose(up.get_xdata(), -0.1)
    np.testing.assert_allclose(up.get_ydata()[at], 0, atol=1e-6)
    size = np.sqrt((1 + np.sqrt(1 - 0.4)) / 2)  # of x⁴ - x² + 1/10 = 0
    np.testing.assert_allclose(np.abs(down.get_ydata()[at]), size, atol=1e-6)
    order = [line.get_label() for line in ax.get_lines()]
    assert order.index("orbits, swept down") < order.index("orbits, swept up")


def test_orbits_of_several_numbers_a_step_are_refused(well, branches, ax):
    orbits = orbit_diagram(
        well,
        jnp.array([0.9]),
        np.array([0.9]),
        lambda x: jnp.stack([x, x]),
        transient=1,
        recorded=2,
    )
    with pytest.raises(ValueError, match="expected one number per step"):
        plot_branches(ax, branches, orbits=orbits)


def test_any_function_of_the_state_may_be_shown(branches, ax):
    plot_branches(ax, branches[0], lambda state: -3 * state[0])
    heights = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    np.testing.assert_allclose(heights, -3, atol=1e-9)


def test_names_stay_in_the_panel():
    figure = Figure(figsize=(3.4, 2.0))
    ax = figure.add_subplot()
    places = list[tuple[float, float]]()
    for x in (0.50, 0.51, 0.52):
        places.append(name_mark(ax, "PD 1", (x, 0.97), places))
    figure.canvas.draw()
    panel, names = ax.get_window_extent(), [text.get_window_extent() for text in ax.texts]
    assert all(name.y1 <= panel.y1 for name in names)
    assert not any(one.overlaps(two) for one, two in pairwise(names))


def branch_of(parameters, values, stable):
    """A branch of fixed points without bifurcations."""
    count = len(parameters)
    return Branch(
        parameters=np.asarray(parameters, float),
        points=np.asarray(values, float).reshape(count, 1, 1),
        multipliers=np.where(stable, 0.5, 2.0).astype(complex).reshape(count, 1),
        stable=np.asarray(stable, bool),
        residuals=np.zeros(count),
        bifurcations=(),
        status="range left",
        message="",
    )


def test_a_branch_that_goes_to_infinity_does_not_squash_the_others():
    places = np.linspace(0, 0.999, 60)
    flat = branch_of(places, np.sin(3 * places), np.ones(60))
    far = branch_of(places, 1 / (1 - places), np.zeros(60))
    ax = Figure().subplots()
    plot_branches(ax, [flat, far])
    assert ax.get_ylim()[1] < 3
    assert "branches go on up to 1e+03" in [text.get_text() for text in ax.texts]
    stable = Figure().subplots()
    places = np.concatenate([np.geomspace(0.005, 0.05, 40), np.linspace(0.06, 7, 40)])
    plot_branches(stable, branch_of(places, 1 / places, np.ones(80)))
    assert stable.get_ylim()[1] < 10
    assert "branches go on up to 200" in [text.get_text() for text in stable.texts]
    alone = Figure().subplots()
    plot_branches(alone, flat)
    assert not alone.texts


@pytest.mark.parametrize("width", [3.4, 7.0])
def test_no_legend_lies_over_a_branch(width):
    """One that fills the panel, so that there is no room for a legend but above."""
    places = np.linspace(0, 1, 200)
    wave = branch_of(places, np.sin(60 * places), np.cos(7 * places) > 0)
    figure = Figure(figsize=(width, 2.4))
    ax = figure.subplots()
    plot_branches(ax, wave)
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    for line in ax.get_lines():
        places = ax.transData.transform(line.get_xydata())
        assert not np.any(np.all((places >= box.min) & (places <= box.max), axis=1))
