"""The report of a run: what is in the file, and that nothing in it can do harm or is fetched."""

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from rich.table import Table as RichTable

from dlf_dynamics import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Problem,
    Recorder,
    RunConfig,
    ScheduleConfig,
    cli,
    open_run,
    train,
)
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.analysis.pipeline import Analysis, Implementation, analysis_named
from dlf_dynamics.analysis.report.citation import CITATIONS
from dlf_dynamics.analysis.report.content import Panel, Part, Series, Table, Window
from dlf_dynamics.analysis.report.page import Page, render
from dlf_dynamics.analysis.report.report import run_parts, write_report
from dlf_dynamics.analysis.report.view import distinct, heights
from dlf_dynamics.analysis.spectra.report import spectrum_part
from dlf_dynamics.analysis.spectra.spectrum import save_spectrum
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import FileError

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def document(page):
    """What Bokeh is given, by a decoder that has nothing of Bokeh in it."""
    (found,) = re.findall(
        r'<script type="application/json" id="[\w-]{36}">(.*?)</script>', page, re.S
    )

    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(html.unescape(found), parse_constant=refused)


def arrays(node):
    """All arrays of a document."""
    if isinstance(node, dict):
        if node.get("type") == "ndarray":
            content = base64.b64decode(node["array"]["data"])
            content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
            kind = np.dtype(node["dtype"]).newbyteorder("<" if node["order"] == "little" else ">")
            yield np.frombuffer(content, kind).reshape(node["shape"])
            return
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from arrays(item)


def holds(page, values):
    """Whether some array of the page is this one, bit for bit."""
    return any(
        a.dtype == values.dtype and a.tobytes() == np.ascontiguousarray(values).tobytes()
        for a in arrays(document(page))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained, analysed, eventful):
    """A run that crosses its threshold and oscillates, with its spectrum beside it."""
    folder = tmp_path_factory.mktemp("report")
    run = trained(eventful)
    shutil.copy(run.path, folder / "run.h5")
    save_spectrum(analysed(eventful), folder / "run.spectrum.h5")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    assert cli.main(["report", str(folder / "run.h5")]) == 0
    return (folder / "run.report.html").read_text(encoding="utf-8")


def test_every_step_is_in_the_page_bit_for_bit(folder, page):
    run = open_run(folder / "run.h5")
    for name in ("loss", "accuracy", "update_cosine"):
        assert holds(page, run.scalars[name]), name
    for weights in run.scalars["class_weights"].T:
        assert holds(page, weights)
    assert holds(page, np.diff(run.scalars["loss"]))
    assert holds(page, run.steps.astype(np.int32))
    assert not holds(page, np.nextafter(run.scalars["loss"], np.inf))  # so that this can fail


def test_the_spectrum_is_in_the_page(folder, page, analysed, eventful):
    spectrum = analysed(eventful)
    hessian = spectrum.hessian
    assert np.all(hessian.centre.converged[1:, 0])
    for values in (
        hessian.iterate.eigenvalues[:, 0],
        hessian.centre.eigenvalues[1:, 0],
        hessian.iterate.intervals[:, 0, 1],
        hessian.iterate.upper_bound,
        spectrum.thresholds,
        spectrum.ntk.eigenvalues[:, 0],
    ):
        assert any(
            np.array_equal(values, a[-len(values) :]) for a in arrays(document(page)) if a.ndim == 1
        )
    text = Tags(page).text
    for line in analysis_named("spectrum").lines(open_run(folder / "run.h5"), spectrum):
        if isinstance(line, str):
            assert " ".join(line.split()) in text


def test_a_threshold_that_grows_by_decades_hides_no_eigenvalue(analysed, eventful):
    spectrum = analysed(eventful)
    growing = np.geomspace(10.0, 1e5, len(spectrum.thresholds))
    growing[-1] = np.inf  # the learning rate falls to 0
    for thresholds, logarithmic in ((spectrum.thresholds, False), (growing, True)):
        panel = spectrum_part(replace(spectrum, thresholds=thresholds), []).panels[0]
        assert panel.title.startswith("largest eigenvalue of the Hessian")
        assert panel.logarithmic == logarithmic


def test_rows_of_the_tables_lead_to_the_steps_of_their_events(page, analysed, eventful):
    spectrum = analysed(eventful)
    spans = [
        (float(attrs["data-first"]), float(attrs["data-last"]))
        for tag, attrs in Tags(page).tags
        if tag == "tr" and "data-first" in attrs
    ]
    assert len(spectrum.oscillations) == 1
    assert len(spectrum.crossings) >= 5
    events = [(w.onset, w.end) for w in spectrum.oscillations]
    events += [(c.step_before, c.step_after) for c in spectrum.crossings]
    assert len(spans) == len(events)
    for (first, last), (start, end) in zip(spans, events, strict=True):
        assert first < start <= end < last
        assert last - first < 10 * (end - start) + 250


def test_nothing_is_fetched(page):
    fetching = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    for tag, attrs in Tags(page).tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form"), tag
        assert not fetching & set(attrs), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    policies = [a["content"] for t, a in Tags(page).tags if "Content-Security-Policy" in a.values()]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert "http" not in policies[0]
    assert "unsafe-eval" not in policies[0]
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert "@import" not in style
    assert "http" not in style


def test_the_page_says_how_to_cite_as_citation_cff_does():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["title"] in CITATIONS[0]
    assert f"Version {cff['version']}" in CITATIONS[0]
    assert len(cff["references"]) == len(CITATIONS) - 1
    for reference, told in zip(cff["references"], CITATIONS[1:], strict=True):
        assert " ".join(reference["title"].split()) in told
        assert reference["identifiers"][0]["value"] in told
        assert str(reference["year"]) in told
        for author in reference["authors"]:
            assert f"{author['given-names']} {author['family-names']}" in told


def test_provenance_and_settings_are_there(folder, page):
    run, text = open_run(folder / "run.h5"), Tags(page).text
    assert run.run_id in text
    assert run.provenance["packages"]["jax"] in text
    assert "optimizer.learning_rate 3.0" in text
    assert all(" ".join(line.split()) in text for line in CITATIONS)


def hostile_run(folder, monkeypatch):
    """A run with a script in every text that its author may choose."""
    path = folder / "<img src=x onerror=alert(1)>&\"'.h5"
    data = folder / "<script>alert('x')<" / "script>.npz"
    data.parent.mkdir()
    rng = np.random.default_rng(0)
    np.savez(data, inputs=rng.normal(size=(12, 2)), labels=np.arange(12) % 3)
    monkeypatch.setattr(sys, "argv", [HOSTILE, HOSTILE])
    config = RunConfig(
        data=DataConfig(name="npz", path=str(data)), model=ModelConfig(widths=(2,)), steps=3
    )
    train(config, path)
    return path


def hostile_recording(folder):
    """The same of a custom training loop, which has skipped a step."""
    path = folder / "recorded.h5"
    x = jnp.linspace(-1, 1, 4)
    problem = Problem(lambda w, x: w * x, lambda f, y: (f - y) ** 2, x, x)
    settings = {HOSTILE: {HOSTILE: HOSTILE}}
    with Recorder(
        path, problem, optimizer=optax.sgd(0.1), config=settings, name=HOSTILE
    ) as recorder:
        for step in (0, 1, 2, 4):
            own = {"<b>own": 10.0 - step}
            state = optax.sgd(0.1).init(jnp.ones(1))
            recorder.record(
                step, jnp.full(1, 1.0 / (1 + step)), state, loss=1.0 / (1 + step), **own
            )
    return path


def test_texts_of_files_are_escaped(tmp_path, monkeypatch):
    for path in (hostile_run(tmp_path, monkeypatch), hostile_recording(tmp_path)):
        assert cli.main(["report", str(path)]) == 0
        written = path.with_suffix(".report.html").read_text(encoding="utf-8")
        found = Tags(written)
        assert HOSTILE not in written
        assert HOSTILE in found.text  # told as it is
        assert path.name in found.text
        assert not [tag for tag, _ in found.tags if tag == "img"]
        scripts = [tag for tag, _ in found.tags if tag == "script"]
        assert len(scripts) == len(re.findall("<script", written))
        assert "<b>own" not in written
    assert "<b>own" in found.text
    assert holds(written, np.array([10.0, 9.0, 8.0, 6.0]))
    assert holds(written, np.array([1 / 2 - 1, 1 / 3 - 1 / 2, np.nan]))  # 4 does not follow 2


def test_names_of_series_panels_tables_and_parts_are_escaped():
    x = np.arange(3)
    beside = {HOSTILE: [HOSTILE] * 3, f"{HOSTILE}2": x}
    series = [Series(HOSTILE + str(k), x, x * 1.0, "#0072B2", beside=beside) for k in range(2)]
    panels = [
        Panel(HOSTILE, series, note=HOSTILE),
        Panel(HOSTILE, series, x_label=HOSTILE, ticks={1.0: HOSTILE}, lines={HOSTILE: 1.0}),
    ]
    tables = [Table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE, [(0.0, 1.0)])]
    part = Part(HOSTILE, [HOSTILE], tables, panels, facts={HOSTILE: HOSTILE})
    plain = Page("t", [Part("p", [], [], [replace(panels[0], title="t")])], subtitle=["s"])
    written = render(Page(HOSTILE, [part], subtitle=[HOSTILE]))
    assert HOSTILE not in written
    count = len(re.findall("<script", render(plain)))
    assert len(re.findall("<script", written)) == count


def test_numbers_that_are_not_finite_are_kept_and_told():
    x = np.arange(6)
    y = np.array([1.0, np.nan, np.inf, -np.inf, -2.0, 1e200])
    part = Part("p", panels=[Panel("loss", [Series("a", x, y, "#000000")], logarithmic=True)])
    written = render(Page("t", [part], last=5))
    assert holds(written, y)
    text = Tags(written).text
    assert "3 values of 1e+150 or more cannot be drawn" in text
    assert "2 values ≤ 0 cannot be drawn on a logarithmic axis" in text


def test_a_page_of_70000_steps_is_small_and_made_in_time():
    rng = np.random.default_rng(0)
    steps = np.arange(70_001)
    names = ("weight 0", "weight 1", "weight 2", "loss", "change", "accuracy", "cosine", "size")
    values = {name: rng.normal(size=len(steps)) for name in names}  # nothing to compress
    panels = [Panel(name, [Series(name, steps, v, "#0072B2")]) for name, v in values.items()]
    start = time.process_time()
    written = render(Page("t", [Part("p", panels=panels)], last=70_000))
    assert time.process_time() - start < 8
    assert len(written.encode()) <= 12e6
    assert all(holds(written, v) for v in values.values())


def test_results_of_another_state_are_named_and_not_shown(folder, tmp_path, capsys):
    shutil.copy(folder / "run.spectrum.h5", tmp_path / "run.spectrum.h5")
    config = RunConfig(data=DataConfig(points_per_class=5), model=ModelConfig(widths=(2,)), steps=5)
    train(config, tmp_path / "run.h5")
    assert cli.main(["report", str(tmp_path / "run.h5")]) == 2
    text = Tags((tmp_path / "run.report.html").read_text(encoding="utf-8")).text
    assert "belongs to another run" in text
    told = capsys.readouterr().err
    assert "belongs to another run" in told
    assert "computes it anew" in told
    assert "largest eigenvalue" not in text
    assert "loss F" in text


def test_a_run_without_results_says_what_would_make_them(tmp_path, trained, small):
    shutil.copy(trained(small).path, tmp_path / "run.h5")
    parts, refused = run_parts(open_run(tmp_path / "run.h5"))
    assert refused == []
    assert [part.title for part in parts] == ["The run"]
    assert "no run.spectrum.h5, which `dlf-dynamics spectrum run.h5` makes" in parts[0].lines


def test_a_new_analysis_is_shown_by_what_it_says(folder, monkeypatch):
    class Norms(Analysis):
        """Of the parameters."""

        name, config = "norms", SpectrumConfig

        def implementation(self):
            table = RichTable("norm", title="Norms")
            table.add_row("12.5")
            words = SimpleNamespace(lines=lambda found: ["the norm is 12.5", table])
            return Implementation(SpectrumConfig, None, None, words, dict)

    part = Norms().report(open_run(folder / "run.h5"), None)
    assert part.title == "norms"
    assert part.lines == ["the norm is 12.5"]
    assert part.tables == [Table("Norms", ["norm"], [["12.5"]])]


def test_several_runs_share_panels_and_are_told_apart(folder, tmp_path, trained, small):
    shutil.copy(trained(small).path, tmp_path / "run.h5")
    shutil.copy(trained(small).path, tmp_path / "other.h5")
    paths = [folder / "run.h5", tmp_path / "run.h5", tmp_path / "other.h5"]
    output = tmp_path / "all.html"
    assert cli.main(["report", *map(str, paths), "-o", str(output)]) == 0
    written = output.read_text(encoding="utf-8")
    for path in paths:
        assert holds(written, open_run(path).scalars["loss"])
    found = Tags(written)
    assert found.text.count("loss F") == 1
    for name in (str(paths[0]), str(paths[1]), "other.h5"):  # two have the same name
        assert f"{name}: loss" in found.text
    colours = [a["data-colour"] for t, a in found.tags if t == "i" and "data-colour" in a]
    assert len(set(colours)) == 3


def test_a_report_is_no_place_for_other_files(folder, capsys):
    before = (folder / "run.h5").read_bytes()
    assert cli.main(["report", str(folder / "run.h5"), "-o", str(folder / "run.h5")]) == 2
    assert "expected a name that ends in .html" in capsys.readouterr().err
    assert (folder / "run.h5").read_bytes() == before
    assert cli.main(["report"]) == 2
    assert "expected run files, or one study file" in capsys.readouterr().err


def test_a_run_without_rows_is_refused(tmp_path, trained, small):
    path = tmp_path / "run.h5"
    shutil.copy(trained(small).path, path)
    run = open_run(path)
    run.steps = run.steps[:0]
    with pytest.raises(FileError, match="has no rows; expected at least one to report"):
        write_report([run], tmp_path / "run.report.html")
    assert not (tmp_path / "run.report.html").exists()


def test_a_report_can_be_written_again_while_the_run_grows(tmp_path, trained, small):
    run = trained(small)
    shutil.copy(run.path, tmp_path / "run.h5")
    output = tmp_path / "run.report.html"
    for _ in range(2):
        assert write_report([open_run(tmp_path / "run.h5")], output) == []
        assert holds(output.read_text(encoding="utf-8"), run.scalars["loss"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "run.report.html"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": OptimizerConfig(learning_rate=1e6)}, "diverged"),
        ({"batch_size": 4}, "batches of 4"),
        ({"dtype": "float32"}, "float32"),
        ({"schedule": ScheduleConfig(name="static")}, "static"),
    ],
)
def test_runs_of_all_kinds_are_shown(tmp_path, trained, small, changes, told):
    run = run_of_a_kind(tmp_path, trained, small, changes)
    write_report([run], tmp_path / "run.report.html")
    written = (tmp_path / "run.report.html").read_text(encoding="utf-8")
    assert told in Tags(written).text
    assert holds(written, run.scalars["loss"])
    assert ("class weights" in Tags(written).text) == (told != "static")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"optimizer": OptimizerConfig(learning_rate=1e6)}, {"batch_size": 4}]
)
def test_spectra_of_all_kinds_are_shown(tmp_path, trained, small, changes):
    run = run_of_a_kind(tmp_path, trained, small, changes)
    spectrum = compute_spectrum(run, SpectrumConfig(k=2, which="both", density=True))
    save_spectrum(spectrum, tmp_path / "run.spectrum.h5")
    write_report([run], tmp_path / "run.report.html")
    written = (tmp_path / "run.report.html").read_text(encoding="utf-8")
    iterate, centre = spectrum.hessian.iterate, spectrum.hessian.centre
    assert np.all(iterate.converged)
    for column in (0, -1):
        assert holds(written, iterate.eigenvalues[:, column])
    values = (centre if np.any(np.isfinite(centre.eigenvalues)) else iterate).eigenvalues
    assert all(holds(written, column) for column in values.T)
    assert "density of the Hessian" in Tags(written).text


def run_of_a_kind(folder, trained, small, changes):
    loss = replace(small.loss, name="squared-error") if "optimizer" in changes else small.loss
    shutil.copy(trained(replace(small, loss=loss, **changes)).path, folder / "run.h5")
    return open_run(folder / "run.h5")


def report_of_classes(count, folder):
    """A run on data of so many classes, and its page."""
    config = RunConfig(
        data=DataConfig(name="blobs", num_classes=count, points_per_class=2),
        model=ModelConfig(widths=(2,)),
        schedule=ScheduleConfig(period=5),
        steps=20,
    )
    run = train(config, folder / "run.h5")
    write_report([run], folder / "run.report.html")
    return run, (folder / "run.report.html").read_text(encoding="utf-8")


def test_each_of_ten_classes_has_a_colour(tmp_path):
    run, written = report_of_classes(10, tmp_path)
    assert all(holds(written, weights) for weights in run.scalars["class_weights"].T)
    tags = Tags(written).tags
    colours = [attrs["data-colour"] for tag, attrs in tags if tag == "i" and "data-colour" in attrs]
    assert len(set(colours[:10])) == 10
    assert all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in colours)


def test_of_many_classes_the_largest_and_the_smallest_weight_are_shown(tmp_path):
    run, written = report_of_classes(100, tmp_path)
    weights = run.scalars["class_weights"]
    assert holds(written, np.max(weights, axis=1))
    assert holds(written, np.min(weights, axis=1))
    assert "of 100 classes the largest and the smallest weight at each step" in Tags(written).text


@pytest.mark.slow
def test_instabilities_are_in_the_page(folder, tmp_path, trained, eventful):
    shutil.copy(trained(eventful).path, tmp_path / "run.h5")
    run, analysis = open_run(tmp_path / "run.h5"), analysis_named("bifurcations")
    found = analysis.performed(run, analysis.config(), tmp_path / "run.bifurcations.h5")
    part = analysis.report(run, found)
    assert part.windows == [Window(e.onset, e.end) for e in found.instabilities]
    assert part.windows
    (table,) = part.tables
    assert len(table.spans) == len(table.rows) == len(found.instabilities)
    for event, (first, last) in zip(found.instabilities, table.spans, strict=True):
        assert first < event.onset <= event.end < last
    write_report([run], tmp_path / "run.report.html")
    written = (tmp_path / "run.report.html").read_text(encoding="utf-8")
    assert holds(written, found.motion.values)
    assert found.note in Tags(written).text
    (sharpness,) = (panel for panel in part.panels if panel.title.startswith("sharpness"))
    assert not sharpness.logarithmic
    growing = replace(found, thresholds=np.geomspace(10.0, 1e5, len(found.thresholds)))
    (sharpness,) = (p for p in analysis.report(run, growing).panels if p.title == sharpness.title)
    assert sharpness.logarithmic


def test_the_help_loads_no_library_of_pages():
    code = (
        "import sys; from dlf_dynamics.cli import main; main(['report', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('bokeh', 'jax', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def panel_of(y, **more):
    return Panel("p", [Series("s", np.arange(len(y)), np.asarray(y, float), "#000000")], **more)


def test_few_far_points_do_not_squash_the_rest_and_are_counted():
    y = np.concatenate([np.sin(np.arange(1000)), [500.0, 900.0, -700.0]])
    low, high, notes = heights(panel_of(y))
    assert -1.2 < low < -1
    assert 1 < high < 1.2
    assert notes == [
        "not seen in the view of the whole run: 2 points above, up to 900; 1 point below, "
        "down to -700; zoom in to see them"
    ]
    low, high, notes = heights(panel_of(y, x_label="own"))
    assert low < -700
    assert high > 900
    assert notes == []


def test_points_that_are_left_out_lie_in_the_pixel_of_one_that_is_kept():
    rng = np.random.default_rng(1)
    x, y = np.arange(50_000), rng.normal(size=50_000)
    y[[3, 7]] = np.nan, np.inf
    kept = distinct(x, y, (-2.0, 2.0), logarithmic=False)
    assert 1000 < len(kept) < 50_000
    inside = np.flatnonzero(np.abs(y) <= 2)
    assert set(kept) <= set(inside)

    def pixels(some):
        across = (x[some] / x[-1] * 1599).astype(int)
        return set(
            zip(across.tolist(), ((y[some] + 2) / 4 * 159).astype(int).tolist(), strict=True)
        )

    assert pixels(kept) == pixels(inside)
    assert len(pixels(kept)) == len(kept)
