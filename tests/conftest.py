"""All tests compute in float64, on one thread; both are chosen before JAX computes anything."""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import combinations
from typing import Any

import jax
import pytest
from matplotlib.transforms import Bbox

# XLA reads both when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")
if version("jaxlib").startswith("0.10."):  # an XLA that does not know the flag ends the process
    # Four fifths of the tests' time was compilation, and half of that is spent in these emitters,
    # for programs that then run a tenth faster. `XLA_FLAGS=` on the command line tests with them.
    # Nor is a program cut into pieces to be compiled on many threads, of which there is one.
    # JAX's cache on disk is no help: a program read back on a CPU is told of on stderr as an error,
    # and most are compiled once in a session.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
jax.config.update("jax_enable_x64", True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Spares the garbage collector what is imported: objects by the million, which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)  # traces of programs are many objects that live briefly
        gc.enable()


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For tests that do not depend on how XLA optimises, here and in the programs they start.

    Programs of small networks take far longer to be compiled than to run.
    """
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    os.environ[name.upper()] = "1"
    yield
    del os.environ[name.upper()]
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def require_schema() -> Callable[[Any, str], None]:
    """Holds what is printed as JSON against its schema: of an analysis, or `info` of a kind."""
    jsonschema = pytest.importorskip("jsonschema")

    def require(content: Any, name: str) -> None:
        from dlf_dynamics.analysis.infotypes import INFO
        from dlf_dynamics.analysis.pipeline import analysis_named
        from dlf_dynamics.jsontypes import document

        kind = INFO.get(name)
        schema = analysis_named(name).schema() if kind is None else document(kind, name)
        jsonschema.validate(content, schema)

    return require


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of each file of tests.

    Thousands of them reach the number of memory mappings that Linux allows a process, and it dies.
    """
    yield
    jax.clear_caches()


@pytest.fixture(
    params=["3.4in", *(pytest.param(each, marks=pytest.mark.slow) for each in ("7in", "86mm 9"))]
)
def require_whole(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], None]:
    """Requires of a figure, which the function draws, that it is whole on a page.

    Nothing is cut off, and no text around the panels stands over another.
    """
    from dlf_dynamics.paper import Paper

    width, _, size = request.param.partition(" ")
    return partial(_require_whole, Paper(width, float(size or 8), letters=True))


_OVERLAP = 2.0
"""Points by which boxes may overlap, as letters do not fill theirs."""


def _require_whole(page: Any, draw: Callable[[], Any]) -> None:
    """Looks at the boxes of what is written around the panels."""
    from dlf_dynamics.analysis.style import styled
    from dlf_dynamics.paper import on_paper

    with on_paper(page), styled():
        figure = draw()
        figure.draw_without_rendering()
        around = figure.get_tightbbox()
        boxes = [box for box in _boxes(figure) if box[1].width > 0]
    width, height = figure.get_size_inches()
    assert abs(width - page.inches) < 1e-9
    edges = around.x0, around.y0, width - around.x1, height - around.y1
    assert min(edges) > -0.02, edges
    slack = _OVERLAP * figure.dpi / 72
    for (name, one), (other_name, other) in combinations(boxes, 2):
        common = Bbox.intersection(one, other)
        assert common is None or min(common.width, common.height) < slack, (name, other_name)


def _boxes(figure: Any) -> Iterator[tuple[str, Any]]:
    """Texts and boxes of all that is written outside of the panels."""
    if figure._suptitle is not None:
        yield figure.get_suptitle(), figure._suptitle.get_window_extent()
    for legend in (*figure.legends, *filter(None, (ax.get_legend() for ax in figure.axes))):
        outside = legend.get_window_extent()
        if not any(ax.bbox.fully_contains(*outside.p0) for ax in figure.axes):
            yield "legend", outside
    for ax in figure.axes:
        yield ax.get_title(), ax.title.get_window_extent()
        for text in ax.texts:
            if text.get_text().startswith("(") and text.get_fontweight() == "bold":
                yield text.get_text(), text.get_window_extent()
        for axis in (ax.xaxis, ax.yaxis):
            yield axis.get_label_text(), axis.label.get_window_extent()
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                label = tick.label1
                if tick.label1.get_visible() and label.get_text() and low <= tick.get_loc() <= high:
                    yield label.get_text(), label.get_window_extent()
