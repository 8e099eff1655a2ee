import io

import numpy as np
from rich.console import Console

from dlf_dynamics.analysis.reproduction.grids import Grid, above_static, compare
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, compared
from dlf_dynamics.analysis.reproduction.published import KNOWN_BY, Published, digitised
from dlf_dynamics.analysis.studies.phase_diagram import PhaseDiagram

PAGE = Page(
    name="some",
    title="A title",
    source="A paper, [arXiv 0000.00000](https://arxiv.org/abs/0000.00000).",
    published="What it says.",
    comparisons=(
        compared("largest |ΔF| of `published`", Published(0.15, "program", 0.002), 0.1488),
        compared("another", digitised(0.25), None),
        Comparison("a third", None, "7"),
    ),
    differs=("One thing.", "Another."),
    pictures=(Picture("some.png", "what is seen"),),
    made={"command": "`dlf-dynamics reproduce some`"},
)


def test_a_page_is_markdown_with_one_table_a_figure_and_lists():
    assert PAGE.to_markdown() == (
        "# A title\n\n"
        "A paper, [arXiv 0000.00000](https://arxiv.org/abs/0000.00000).\n\n"
        "## What was published\n\nWhat it says.\n\n"
        "## Comparison\n\n"
        "| what | published | measured here | difference |\n"
        "| --- | --- | --- | --- |\n"
        "| largest \\|ΔF\\| of `published` | 0.15 ± 0.002 (program) | 0.1488 | -0.0012 |\n"
        "| another | 0.25 ± 3 % (digitised) | not reached at this size |  |\n"
        "| a third | not known to us | 7 |  |\n\n"
        "How the published numbers are known:\n\n"
        f"* *program*: {KNOWN_BY['program']}\n* *digitised*: {KNOWN_BY['digitised']}\n\n"
        "![what is seen](some.png)\n\n"
        "## What differs\n\n* One thing.\n* Another.\n\n"
        "## How it was made\n\n"
        "|  |  |\n| --- | --- |\n| command | `dlf-dynamics reproduce some` |\n"
    )


def test_the_table_of_the_terminal_has_the_same_rows_without_marks_of_markdown():
    console = Console(file=io.StringIO(), width=120)
    console.print(PAGE.table())
    text = console.file.getvalue()
    assert "largest |ΔF| of published" in text
    assert "0.15 ± 0.002 (program)" in text
    assert "not reached at this size" in text
    assert "`" not in text


def test_differences_are_measured_minus_published_in_the_form_of_the_error():
    steps = compared("a", digitised([4203, 5083], steps=True), (4202, 5105), "late")
    assert steps.cells[1:] == ("4,203; 5,083 ± 20 (digitised)", "4,202; 5,105", "-1; +22 (late)")
    values = compared("b", digitised([0.5, -0.25]), (0.51, -0.2))
    assert values.cells[2:] == ("0.51; -0.2", "+2.0 %; -20.0 %")
    exact = compared("c", Published(2.0, "program"), 2.0 + 1e-9)
    assert exact.cells[1:] == ("2 (program)", "2", "+1e-09")


def diagram(mean, error, static, static_error):
    """Two periods, two amplitudes, three runs each."""
    mean, error = np.array(mean), np.array(error)
    return PhaseDiagram(
        quantity="accuracy",
        x_key="schedule.period",
        y_key="schedule.amplitude",
        x=np.array([10, 30]),
        y=np.array([3.0, 10.0]),
        fixed={},
        mean=mean,
        standard_error=error,
        count=np.full((2, 2), 3),
        missing=np.zeros((2, 2), int),
        reference=np.full((2, 2), static),
        reference_error=np.full((2, 2), static_error),
        static=np.full(2, static),
        static_error=np.full(2, static_error),
        static_count=np.full(2, 3),
        static_missing=np.zeros(2, int),
    )


def test_cells_are_above_the_static_loss_by_two_combined_errors_and_the_best_is_named():
    # Errors 0.03 and 0.04 combine to 0.05: 0.61 is above 0.5 by more than twice that, 0.59 is not.
    found = diagram([[0.59, 0.61], [0.4, 0.9]], np.full((2, 2), 0.03), 0.5, 0.04)
    np.testing.assert_array_equal(above_static(found), [[False, True], [False, True]])
    static, best, count = compare([("accuracy", found)])
    assert static.measured == "0.500 ± 0.040"
    assert best.what == "accuracy: best cell, A = 10, T = 30"
    assert best.measured == "0.900 ± 0.030"
    assert best.difference == "+0.400 from the static loss, combined standard error 0.050"
    assert count.measured == "2 of 4 (50%)"


def test_single_runs_have_no_errors_and_no_verdict():
    found = diagram([[0.52, 0.5], [0.4, 0.4]], np.full((2, 2), np.nan), 0.5, np.nan)
    static, best, count = compare([("accuracy", found)])
    assert static.cells[1:3] == ("not known to us", "0.500")
    assert (best.published, best.difference) == (None, "+0.020 from the static loss")
    assert count.measured == "no errors, one run a cell"


def test_a_grid_has_the_static_loss_once_and_every_other_cell():
    cells = Grid((10.0, 70.0), (5, 9), 3).cells()
    found = [tuple(value for _, value in cell) for cell in cells]
    assert found == [(1.0, 5), (10.0, 5), (10.0, 9), (70.0, 5), (70.0, 9)]
    assert Grid((10.0,), (5,), 3).told == "A in {1, 10}, T in {5}, seeds: 3"
