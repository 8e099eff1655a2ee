"""Results as trees, tables and files: every number is that of the result, and says what it is."""

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest

from dlf_dynamics import codec, labels, resultfile
from dlf_dynamics.analysis.explanations.explanation import Explanations
from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations, load_bifurcations
from dlf_dynamics.analysis.instabilities.frozen import FrozenDiagram
from dlf_dynamics.analysis.instabilities.instability import Instability
from dlf_dynamics.analysis.instabilities.oscillation import Motion
from dlf_dynamics.analysis.linalg.certificate import BUDGET
from dlf_dynamics.analysis.spectra.density import Density
from dlf_dynamics.analysis.spectra.eigenvalues import Eigenvalues
from dlf_dynamics.analysis.spectra.events import Crossing, Oscillation
from dlf_dynamics.analysis.spectra.infinite_width import InfiniteWidth
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum
from dlf_dynamics.analysis.spectra.spectrum import Spectrum, load_spectrum, save_spectrum
from dlf_dynamics.analysis.studies.outcome import CURVES, NUMBERS, Outcome
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import create, read_study
from dlf_dynamics.cli import main
from dlf_dynamics.config import BifurcationConfig, RunConfig
from dlf_dynamics.errors import ConfigError, FileError, StaleError
from dlf_dynamics.exporting import export, metadata_path
from dlf_dynamics.source import Source

xarray, pandas = pytest.importorskip("xarray"), pytest.importorskip("pandas")


def same_bits(found, expected):
    """Whether two arrays have the same bytes, also those of NaN and -0."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    return np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.fixture(scope="module")
def spectrum(small, analysed):
    """A small one with a value that did not converge, odd numbers, and a window without steps."""
    found = analysed(small)
    status, values = found.hessian.iterate.status.copy(), found.hessian.iterate.eigenvalues.copy()
    status[3, 0], values[4, 0], values[5, 0] = BUDGET, -0.0, np.nextafter(1.0, 2.0)
    iterate = found.hessian.iterate._replace(status=status, eigenvalues=values)
    rng = np.random.default_rng(0)
    density = Density(
        np.array([0, 60]),
        rng.normal(size=(2, 3, 4)),
        rng.uniform(size=(2, 3, 4)),
        *rng.normal(size=(4, 2)),
        "hessian",
        False,
        3,
        4,
        15,
    )
    return replace(
        found,
        hessian=replace(found.hessian, iterate=iterate),
        densities={"hessian": density},
        oscillations=[
            Oscillation(5, 30, True, 7, 20, 0.1, 4),
            Oscillation(40, 59, False, -1, -1, 1 / 3),
        ],
        crossings=[Crossing("up", 0, 7, 1.5, 7.5, 20 / 3, "centre", "refined")],
    )


@pytest.fixture(scope="module")
def path(spectrum, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "run.spectrum.h5"
    save_spectrum(spectrum, path)
    return path


@pytest.fixture(scope="module")
def bifurcations(tmp_path_factory):
    """By hand: two steps that were looked at, one window of which most is not known, a diagram."""
    numbers = {f.name: float("nan") for f in fields(Instability) if f.type == "float"}
    unknown = {f.name: -1 for f in fields(Instability) if f.type == "int"}
    texts = {"criticality": "", "criticality_reason": "näh", "symmetric": False}
    event = Instability(**(numbers | unknown | texts | {"onset": 3, "end": 9, "settled": 4}))
    line, two = np.linspace(0.1, 0.7, 10), np.array([[0.5, 1.0], [np.nan, np.nan]])
    motion = Motion(
        np.arange(10),
        np.full((10, 3), np.nan),
        *[line] * 6,
        np.array([1, 9]),
        np.array([0.7, np.nan]),
        two,
        np.array([True, False]),
        two,
        np.ones((2, 15)),
    )
    diagram = FrozenDiagram(
        5,
        "learning_rate",
        0.3,
        np.array([0.1, 0.3]),
        np.array([[1.0], [np.nan]]),
        np.array([False, True]),
        np.array([0.3]),
        *[np.array([0.25])] * 2,
        np.array([True]),
        *[np.array([0.5])] * 4,
        np.array([-1 + 2j]),
        np.array([0.0]),
        np.array([1]),
        np.array([b"stable"]),
    )
    found = Bifurcations(
        Source("abc", "running", 9, 2, "0"),
        BifurcationConfig(),
        "critical eigenvalue of gd",
        "note",
        0.0,
        "",
        motion,
        np.array([2.0, 2.0]),
        [],
        [event],
        [diagram],
    )
    path = tmp_path_factory.mktemp("exported") / "run.bifurcations.h5"
    resultfile.save(path, "bifurcations", found)
    return load_bifurcations(path), path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four runs, of which one is not done and one failed; its message would be markup."""
    axes = (("schedule.amplitude", (1.0, 10.0)), ("model.seed", (0, 1)))
    defined = Study(RunConfig(steps=9), axes, measures=Measures(curve_points=3))
    path = tmp_path_factory.mktemp("exported") / "study.h5"
    with create(path, defined) as writer:
        curves = np.arange(18.0).reshape(3, 6) / 7
        writer.append(3, Outcome("complete", steps=9, loss=0.1, accuracy=2 / 3, curves=curves))
        writer.append(0, Outcome("failed", "<b>out</b> of memory"))
    return read_study(path), path


RESULTS = (Spectrum, Bifurcations, Explanations)


def records(kind):
    """The classes of records and tables within a result."""
    yield kind
    for hint in codec.hints(kind).values():
        if codec.is_grouped(hint):
            yield from records(codec.member_type(hint))


@pytest.mark.parametrize("kind", RESULTS)
def test_every_field_has_a_description_and_every_axis_a_name(kind):
    for record in records(kind):
        told = labels.descriptions(record)
        for name, hint in codec.hints(record).items():
            assert told.get(name), f"{record.__name__}.{name}"
            if codec.is_array(hint):
                names = labels.axis_names(hint, len(hint.dim_str.split()))
                assert len(set(names)) == len(names)
                assert not [axis for axis in names if axis.startswith("axis_")], name


def test_every_name_in_the_table_of_units_is_that_of_a_field():
    known = {name for kind in (*RESULTS, Outcome) for r in records(kind) for name in codec.hints(r)}
    known |= {f"{r.__name__}.{n}" for k in RESULTS for r in records(k) for n in codec.hints(r)}
    from dlf_dynamics.run_table import _ENTRIES

    known |= {path.split("/")[-1] for path in _ENTRIES} | {"step"}
    assert set(labels._UNIT_OF) <= known
    assert labels.units_of(Instability, "period_2") == "fraction"
    assert labels.units_of(Outcome, "period_2") == "1"


def test_the_result_file_names_its_axes_for_every_reader_of_hdf5(path, spectrum):
    with h5py.File(path) as file:
        values = file["hessian/iterate/eigenvalues"]
        assert [dim[0].name for dim in values.dims] == ["/checkpoints", "/hessian/iterate/k"]
        assert file["checkpoints"][()].tolist() == spectrum.hessian.steps.tolist()
        assert file["checkpoints"].attrs["units"] == "updates"
        assert file["oscillations/crossed"].attrs["units"] == "updates"
        assert file["oscillations/crossed"].attrs["missing_value"] == -1
        assert "missing_value" not in file["oscillations/onset"].attrs
        status = file["hessian/iterate/status"].attrs
        assert status["flag_values"].tolist() == [0, 1, 2, 3, 4]
        assert status["flag_meanings"] == "converged unranked tracked budget not_finite"
        arrays = []
        file.visititems(lambda _, item: arrays.append(item) if hasattr(item, "dims") else None)
        for array in arrays:
            labelled = [len(dim) for dim in array.dims]
            assert array.is_scale or labelled == [1] * array.ndim, array.name
            if not (array.ndim == 0 or array.is_scale):
                assert array.attrs["description"]


def test_what_is_labelled_reads_as_what_was_written(path, spectrum):
    found = load_spectrum(path)
    for name, array in codec.encode(spectrum, ("source",)).items():
        if name != "settings":
            assert same_bits(codec.encode(found, ("source",))[name], array), name


def test_a_file_without_labels_is_read_as_before(path, tmp_path):
    result = resultfile.read(path, "spectrum", None)
    old = tmp_path / "old.h5"
    resultfile.write(old, result)
    with h5py.File(old, "a") as file:
        file.attrs["format_version"] = "4.0"
    assert same_bits(load_spectrum(old).thresholds, load_spectrum(path).thresholds)
    with h5py.File(old) as file:
        assert "checkpoints" not in file


def test_steps_that_were_changed_are_found(path, tmp_path):
    changed = tmp_path / "changed.h5"
    changed.write_bytes(path.read_bytes())
    with h5py.File(changed, "a") as file:
        file["checkpoints"][1] = 8
    with pytest.raises(FileError, match="it is not what was written"):
        load_spectrum(changed)


def check_tree(tree, arrays):
    """Holds a tree against the arrays of a result, by path."""
    for name, values in arrays.items():
        if name.rpartition("/")[2] == "settings":
            continue
        variable = tree[name]
        if values.dtype.kind == "S":
            assert variable.values.tolist() == [text.decode() for text in values.tolist()]
        elif values.dtype.kind == "i" and (values == -1).any() and variable.dtype.kind == "f":
            expected = [math.nan if value == -1 else value for value in values.ravel().tolist()]
            np.testing.assert_array_equal(variable.values.ravel(), expected)
        else:
            assert same_bits(variable.values, values), name
        assert variable.attrs["description"]
        assert not [dim for dim in variable.dims if dim.startswith(("phony", "axis_"))]


@pytest.mark.parametrize("opened", [False, True], ids=["to_xarray", "the file"])
def test_the_tree_of_a_spectrum_holds_its_numbers(opened, path, spectrum):
    tree = spectrum.to_xarray()
    if opened:
        tree = xarray.open_datatree(path, engine="h5netcdf")
    arrays = {n: np.asarray(a) for n, a in codec.encode(spectrum, ("source",)).items()}
    check_tree(tree, arrays)
    assert tree["hessian/iterate"].eigenvalues.sel(checkpoints=7).shape == (1,)
    assert tree["sides"].sel(points="centre").dims == ("checkpoints",)
    assert tree["oscillations/crossed"].values[0] == 4
    assert np.isnan(tree["oscillations/crossed"].values[1])
    assert tree["oscillations/onset"].dtype == np.int64
    assert tree.attrs["run_id"] == spectrum.source.run_id


def test_the_tree_says_what_it_is_of(spectrum):
    attributes = spectrum.to_xarray().attrs
    assert attributes["last_step"] == 60
    assert attributes["exported_by"].startswith("dlf-dynamics ")
    assert json.loads(attributes["config"])["k"] == 1


def test_the_tree_of_bifurcations_holds_its_numbers(bifurcations):
    found, path = bifurcations
    arrays = {n: np.asarray(a) for n, a in codec.encode(found, ("source",)).items()}
    check_tree(found.to_xarray(), arrays)
    tree = xarray.open_datatree(path, engine="h5netcdf")
    check_tree(tree, arrays)
    assert tree["motion"].recurrence.sel(lags=4, steps=5).shape == ()
    assert tree["diagrams/0"].orbits.sel(values=0.3).shape == (1,)
    assert tree["diagrams/0/branch_multiplier"].values.tolist() == [-1 + 2j]


def test_the_main_table_has_each_eigenvalue_beside_its_certificate(spectrum):
    frame = spectrum.to_dataframe()
    rows = iter(frame.to_dict("records"))
    for checkpoint, step in enumerate(spectrum.hessian.steps):
        for place, point in enumerate(("iterate", "centre")):
            row, at = next(rows), getattr(spectrum.hessian, point)
            assert (row["step"], row["k"], row["point"]) == (step, 0, point)
            for column, value in (
                ("eigenvalues", at.eigenvalues[checkpoint, 0]),
                ("residuals", at.residuals[checkpoint, 0]),
                ("intervals_lower", at.intervals[checkpoint, 0, 0]),
                ("intervals_upper", at.intervals[checkpoint, 0, 1]),
                ("upper_bound", at.upper_bound[checkpoint]),
                ("rank_bounds_bottom", at.rank_bounds[checkpoint, 1]),
                ("threshold", spectrum.thresholds[checkpoint]),
            ):
                assert same_bits(np.float64(row[column]), value), column
            names = ("converged", "unranked", "tracked", "budget", "not finite")
            assert row["status"] == names[at.status[checkpoint, 0]]
            sides = {-1: "below", 0: "unknown", 1: "above"}
            assert row["side"] == sides[spectrum.sides[checkpoint, place]]
            assert row["num_matvecs"] == at.num_matvecs[checkpoint]
    assert next(rows, None) is None
    assert (frame["status"] == "budget").sum() == 1
    assert frame["num_matvecs"].dtype == np.int64
    assert frame["incomplete"].dtype == bool


def test_of_several_values_the_side_is_that_of_the_largest(spectrum):
    twice = lambda at: at._replace(  # noqa: E731
        **{
            name: np.repeat(getattr(at, name), 2, axis=1)
            for name in ("eigenvalues", "residuals", "intervals", "status", "modes")
        }
    )
    hessian = spectrum.hessian
    both = replace(hessian, iterate=twice(hessian.iterate), centre=twice(hessian.centre))
    frame = replace(spectrum, hessian=both).to_dataframe()
    assert len(frame) == 4 * len(hessian.steps)
    assert frame[frame["k"] == 1]["side"].isna().all()
    assert frame[frame["k"] == 0]["side"].notna().all()


def test_a_step_that_there_is_not_is_missing_and_not_minus_one(spectrum):
    frame = spectrum.to_dataframe("oscillations")
    assert frame["crossed"].tolist() == [4, pandas.NA]
    assert str(frame["crossed"].dtype) == "Int64"
    assert frame["onset"].tolist() == [5, 40]
    assert frame["burst"].tolist() == [True, False]
    assert frame.attrs["columns"]["crossed"]["units"] == "updates"
    assert "missing where there is none" in frame.attrs["columns"]["crossed"]["comment"]
    assert "above the threshold" in frame.attrs["columns"]["crossed"]["description"]
    assert frame.attrs["run_id"] == spectrum.source.run_id


def test_the_tables_of_bifurcations(bifurcations):
    found, _ = bifurcations
    (row,) = found.to_dataframe().to_dict("records")
    assert (row["onset"], row["crossed"], row["criticality_reason"]) == (3, None, "näh")
    sharpness = found.to_dataframe("motion.looked")
    assert sharpness["converged"].tolist() == [True, False]
    assert sharpness["side"].tolist() == ["below", "unknown"]
    assert sharpness["intervals_upper"].tolist()[0] == 1.0
    assert found.to_dataframe("diagrams.0.exponent_values")["branch_multiplier_imag"].tolist() == [
        2.0
    ]
    assert found.to_dataframe("crossings").empty
    motion = found.to_dataframe("motion.steps")
    assert {"step", "recurrence_2", "recurrence_4", "recurrence_8"} <= set(motion.columns)
    assert motion["step"].tolist() == list(range(10))


def test_the_csv_of_instabilities_leaves_out_steps_that_there_are_not_and_no_numbers(
    bifurcations, tmp_path
):
    found = bifurcations[0]
    (event,) = found.instabilities
    path = tmp_path / "x.csv"
    export(replace(found, instabilities=[replace(event, coefficient=-1.0)]), path)
    (row,) = read_csv(path)
    assert list(row) == [field.name for field in fields(Instability)]
    assert (row["coefficient"], row["crossed"], row["c_0"], row["onset"]) == ("-1", "", "", "3")


def test_a_table_says_of_which_operator_and_with_which_settings_it_is(spectrum, bifurcations):
    settings = spectrum.to_dataframe().attrs["settings"]
    assert settings["operator"] == "Hessian of the weighted loss"
    assert settings["precision"] == "float64"
    assert settings["tol"] == spectrum.hessian.tol
    assert settings["label"] == "critical eigenvalue of gd"
    assert spectrum.to_dataframe("ntk.checkpoints.k").attrs["settings"]["num_examples"] == 24
    settings = bifurcations[0].to_dataframe("diagrams.0.exponent_values").attrs["settings"]
    assert (settings["step"], settings["parameter"], settings["actual"]) == (
        5,
        "learning_rate",
        0.3,
    )


def test_a_table_that_there_is_not_is_named(spectrum):
    with pytest.raises(ConfigError, match=r"table is 'no'; expected one of eigenvalues, .*crossi"):
        spectrum.to_dataframe("no")


def test_the_tree_and_tables_of_a_run(small, trained):
    run = trained(small)
    tree, frame = run.to_xarray(parameters=True), run.to_dataframe()
    for name, values in run.scalars.items():
        assert same_bits(tree[f"scalars/{name}"].values, values)
        if values.ndim == 1:
            assert same_bits(frame[name].to_numpy(), values)
    assert same_bits(frame["class_weights_2"].to_numpy(), run.scalars["class_weights"][:, 2])
    assert frame["step"].tolist() == run.steps.tolist()
    assert same_bits(tree["checkpoints/parameters"].values, run.parameters())
    assert tree["checkpoints/checkpoints"].values.tolist() == run.checkpoint_steps.tolist()
    assert tree["scalars/loss"].attrs["units"] == "nats or squared outputs"
    validation = run.to_dataframe("checkpoints")
    assert same_bits(validation["validation_loss"].to_numpy(), run.validation["loss"])
    assert "parameters" not in run.to_xarray()["checkpoints"]
    raw = xarray.open_datatree(run.path, engine="h5netcdf")
    assert raw["scalars/loss/value"].sel(step=7) == run.scalars["loss"][7]
    assert raw["parameters/value"].sizes == {"step": 10, "params": 15}


def test_the_tree_and_tables_of_a_study(study):
    found, path = study
    tree, frame = found.to_xarray(), found.to_dataframe()
    for name in NUMBERS:
        assert same_bits(tree[name].values, found.columns[name])
        assert same_bits(frame[name].to_numpy(), found.columns[name])
    assert frame["status"].tolist() == ["failed", "not done", "not done", "complete"]
    assert frame["schedule.amplitude"].tolist() == [1, 1, 10, 10]
    assert frame["model.seed"].tolist() == [0, 1, 0, 1]
    curves = found.to_dataframe("curves")
    assert curves["point"].tolist() == [0.0, 0.5, 1.0] * 4
    assert same_bits(curves[f"curves_{CURVES[2]}"].to_numpy(), found.curves[..., 2].ravel())
    raw = xarray.open_datatree(path, engine="h5netcdf")
    assert raw["columns/loss"].sel(run=3) == 0.1
    assert raw["curves"].sel(run=3, point=0.5, quantity="accuracy") == found.curves[3, 1, 2]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("table", [None, "oscillations", "ntk.checkpoints.k"])
def test_a_csv_file_has_every_digit(table, spectrum, tmp_path):
    path = tmp_path / "x.csv"
    assert export(spectrum, path, table) == [path, metadata_path(path)]
    frame, rows = spectrum.to_dataframe(table), read_csv(path)
    assert list(rows[0]) == list(frame.columns)
    for name in frame.columns:
        column, texts = frame[name], [row[name] for row in rows]
        if column.dtype.kind == "f":
            numbers = np.array([float(text or "nan") for text in texts])
            assert same_bits(numbers, np.where(np.isnan(column), np.nan, column)), name
        elif column.dtype.kind in "iI":
            assert texts == ["" if value is pandas.NA else str(value) for value in column]
        else:
            assert texts == [str(value) for value in column]


def test_the_metadata_of_a_csv_file_say_what_it_is_of(spectrum, tmp_path):
    path = tmp_path / "x.csv"
    export(spectrum, path, "oscillations", provenance={"host": "ä"})
    told = json.loads(metadata_path(path).read_text())
    assert told["url"] == "x.csv"
    source = told["dc:source"]
    assert (source["run_id"], source["last_step"]) == (spectrum.source.run_id, 60)
    assert source["provenance"] == {"host": "ä"}
    columns = {column["name"]: column for column in told["tableSchema"]["columns"]}
    assert columns["crossed"]["datatype"] == "integer"
    assert columns["burst"]["datatype"]["base"] == "boolean"
    assert columns["max_change"]["schema:unitText"] == "nats or squared outputs"


def test_a_parquet_file_has_the_same_columns_and_knows_what_it_is_of(spectrum, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    for table in (None, "oscillations"):
        export(spectrum, path, table)
        frame, found = spectrum.to_dataframe(table), pandas.read_parquet(path)
        pandas.testing.assert_frame_equal(found, frame, check_exact=True)
        assert found.attrs["run_id"] == spectrum.source.run_id
        assert found.dtypes.to_dict() == frame.dtypes.to_dict()


def test_a_netcdf_file_is_the_tree(spectrum, bifurcations, tmp_path):
    for found in (spectrum, bifurcations[0]):
        path = tmp_path / "x.nc"
        export(found, path, provenance={"host": "ä"})
        tree, whole = xarray.open_datatree(path, engine="h5netcdf"), found.to_xarray()
        assert [node.path for node in tree.subtree] == [node.path for node in whole.subtree]
        for node in whole.subtree:
            for name, array in node.data_vars.items():
                if array.dtype.kind == "c":
                    assert same_bits(tree[node.path][f"{name}_real"].values, array.values.real)
                    assert same_bits(tree[node.path][f"{name}_imag"].values, array.values.imag)
                    continue
                read = tree[node.path][name]
                assert read.dims == array.dims
                np.testing.assert_array_equal(read.values, array.values)
                assert read.dtype.kind == array.dtype.kind or read.dtype == object
        assert json.loads(tree.attrs["provenance"]) == {"host": "ä"}
        tree.close()


def test_texts_of_files_may_hold_anything(spectrum, bifurcations, tmp_path):
    odd = replace(spectrum, label="a\0b" + "ä" * 100_000)
    export(odd, tmp_path / "x.nc")
    tree = xarray.open_datatree(tmp_path / "x.nc", engine="h5netcdf")
    assert tree.attrs["label"] == r"a\x00b" + "ä" * 100_000
    (diagram,) = bifurcations[0].diagrams
    stability = np.array([b"\xff\0x"])
    damaged = replace(bifurcations[0], diagrams=[replace(diagram, branch_stability=stability)])
    export(damaged, tmp_path / "y.nc")
    table = damaged.to_dataframe("diagrams.0.exponent_values")
    assert table["branch_stability"].tolist() == ["\ufffd\\x00x"]


def test_the_command_exports_files_of_all_kinds(
    path, bifurcations, study, small, trained, tmp_path
):
    for number, source in enumerate((path, bifurcations[1], study[1], trained(small).path)):
        for suffix in ("csv", "nc", "parquet"):
            output = tmp_path / f"{number}.{suffix}"
            assert main(["export", str(source), "-o", str(output)]) == 0
            assert output.stat().st_size > 0
    assert read_csv(tmp_path / "3.csv")[60]["step"] == "60"
    told = json.loads((tmp_path / "0.csv-metadata.json").read_text())
    assert told["dc:source"]["provenance"]["packages"]["h5py"] == h5py.__version__
    assert not list(tmp_path.glob("*.partial"))


def test_what_info_prints_of_results_and_studies_is_of_its_schema(
    path, bifurcations, study, capsys, require_schema
):
    for kind, file in (("result", path), ("result", bifurcations[1]), ("study", study[1])):
        assert main(["info", str(file), "--json"]) == 0
        require_schema(json.loads(capsys.readouterr().out, parse_constant=pytest.fail), kind)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-o", "x.xlsx"], "output is x.xlsx; expected a name that ends in .csv, .nc, .parquet"),
        (["-o", "x.csv", "--table", "no"], "table is 'no'; expected one of eigenvalues, ntk."),
        (["-o", "x.nc", "--table", "ntk"], "table is 'ntk'; a netCDF file has all tables: leave"),
        (["-o", "no/x.csv"], "directory no does not exist"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_line(
    options, line, path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(path), *options]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert line in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "output"), [("xarray", "x.nc"), ("pandas", "x.csv"), ("h5netcdf", "x.nc")]
)
def test_what_is_not_installed_is_named(missing, output, path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", str(path), "-o", str(tmp_path / output)]) == 2
    told = capsys.readouterr().err
    assert f'{missing} is needed for this and is not installed: pip install "dlf-dyn' in told
    assert 'dlf-dynamics[export]"' in told


def test_help_and_reading_results_load_nothing_of_the_extra():
    code = (
        "import sys, dlf_dynamics.cli as cli; cli.main(['export', '--help'])\n"
        "import dlf_dynamics.analysis.spectra.spectrum, dlf_dynamics.analysis.tellers\n"
        "sys.exit(bool({'xarray', 'pandas', 'h5netcdf', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_result_of_another_run_is_neither_drawn_nor_told_beside_it(spectrum, adaptive, trained):
    other = trained(adaptive)
    for show in (spectrum.summary, spectrum.plot):
        with pytest.raises(StaleError, match=r"this spectrum belongs to another run than"):
            show(other)


def test_the_summary_is_what_the_command_prints(spectrum, path, small, trained, capsys, tmp_path):
    run = trained(small)
    from dlf_dynamics.analysis.pipeline import analysis_named
    from dlf_dynamics.commands.terminal import show

    show(*analysis_named("spectrum").lines(run, spectrum), width=100)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert spectrum.summary(run).splitlines() == printed
    assert "1 crossing at centres (1 refined)" in spectrum.summary()


def test_figures_are_those_of_the_command(spectrum, bifurcations, study, small, trained):
    run = trained(small)
    assert list(spectrum.plot(run)) == ["spectrum", "bifurcation", "density"]
    assert list(run.plot(zoom="10:20")) == ["run"]
    assert "instabilities" in bifurcations[0].plot()
    assert len(study[0].plot(quantities=["accuracy"])) >= 1
    with pytest.raises(ConfigError, match=r"figures of spectrum show the run, too; expected plot"):
        spectrum.plot()
    for found in (spectrum, run, study[0]):
        with pytest.raises(ConfigError, match="option 'colour' is not known; expected"):
            found.plot(run, colour="red")
    assert run.plot()._repr_html_().count('src="data:image/png;base64,iVBOR') == 1


def test_html_holds_no_markup_of_files(spectrum, bifurcations, study, small, trained):
    evil = "<script>alert(1)</script>\x1b[2J"
    found = replace(spectrum, label=evil, unwatched=evil)
    html = found._repr_html_()
    assert "<script" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in html
    assert "\x1b" not in found.summary()
    for other in (bifurcations[0], study[0], trained(small)):
        html = other._repr_html_()
        assert html.startswith(f"<div><strong>{type(other).__name__}</strong><pre")
        assert html.count("<table>") == html.count("</table>") == 1
        assert len(html) < 20_000


def test_in_a_notebook_the_summary_is_in_the_html_and_not_printed(spectrum, monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "Hessian of the weighted loss at 10 checkpoints" in spectrum._repr_html_()
    assert "\x1b" not in spectrum.summary()
    assert capsys.readouterr().out == ""


def test_reprs_are_of_a_few_lines(spectrum, bifurcations, study, small, trained):
    for found in (spectrum, bifurcations[0], study[0], trained(small)):
        assert len(repr(found)) < 1500


def test_a_run_says_what_came_of_it(small, trained):
    run = trained(small)
    assert run.outcome.startswith("60 updates, 10 checkpoints of 15 parameters; loss ")
    assert run.summary().splitlines()[0] == f"{run.path}: complete, {run.outcome}"


def test_an_array_without_annotated_axes_gets_numbered_ones():
    assert labels.axis_names(np.ndarray, 2) == ("axis_0", "axis_1")


def test_what_is_exported_is_not_written_over(small, trained, tmp_path, capsys):
    for source, output in (
        ("a.csv", "a.csv"),
        ("a.nc", "./a.nc"),
        ("b.csv-metadata.json", "b.csv"),
    ):
        shutil.copyfile(trained(small).path, tmp_path / source)
        before = (tmp_path / source).read_bytes()
        assert main(["export", str(tmp_path / source), "-o", str(tmp_path / output)]) == 2
        assert "would be written, and is the file to export" in capsys.readouterr().err
        assert (tmp_path / source).read_bytes() == before


@pytest.mark.parametrize("kind", [Eigenvalues, NTKSpectrum, InfiniteWidth, Density])
def test_descriptions_of_spectra_hold_no_shapes_and_refer_to_no_code(kind):
    """Whoever reads a column of a table has no docstring to look into."""
    for name, description in labels.descriptions(kind).items():
        assert "shape (" not in description, name
        assert name == "normal_weights" or "see `" not in description, name
