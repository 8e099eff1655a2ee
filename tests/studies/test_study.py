import re
from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.analysis.studies.study import Measures, Study, load_study, require_size
from dlf_dynamics.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.presets import PRESETS


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return load_study(path)

    return load


def test_a_grid_spans_every_combination_and_the_last_key_varies_fastest(load):
    study = load(
        "steps = 12\n[schedule]\nperiod = 3\n"
        "[grid]\nschedule.amplitude = [1, 70]\nmodel.widths = [[50], [100, 50]]\n"
        "model.seed = [4, 7]\n[measures]\ncurve_points = 5\nsharpness = true\nntk_examples = 9\n"
    )
    expected = [
        RunConfig(
            steps=12,
            schedule=ScheduleConfig(amplitude=amplitude, period=3),
            model=ModelConfig(widths=widths, seed=seed),
        )
        for amplitude in (1.0, 70.0)
        for widths in ((50,), (100, 50))
        for seed in (4, 7)
    ]
    assert study.configs == expected
    assert len(study) == 8
    assert study.base == RunConfig(steps=12, schedule=ScheduleConfig(period=3))
    assert study.measures == Measures(5, True, 9)
    assert study.axes == (
        ("schedule.amplitude", (1.0, 70.0)),
        ("model.widths", ((50,), (100, 50))),
        ("model.seed", (4, 7)),
    )
    assert study.keys == ("schedule.amplitude", "model.widths", "model.seed")
    amplitude, seed = study.values("schedule.amplitude"), study.values("model.seed")
    assert amplitude.tolist() == [1, 1, 1, 1, 70, 70, 70, 70]
    assert seed.tolist() == [4, 7] * 4
    assert (amplitude.dtype, seed.dtype) == (np.float64, np.int64)
    assert study.values("model.widths").tolist() == ["50", "50", "100-50", "100-50"] * 2
    assert study.values("model.activation").tolist() == ["relu"] * 8


def test_dotted_keys_and_nested_tables_are_the_same(load):
    dotted = load('[grid]\nschedule.period = [5, 9]\nmodel.activation = ["relu", "tanh"]\n')
    nested = load('[grid.schedule]\nperiod = [5, 9]\n[grid.model]\nactivation = ["relu", "tanh"]\n')
    assert dotted == nested
    assert hash(dotted) == hash(nested)
    assert dotted.measures == Measures(0, False, 0)


def test_a_list_is_its_runs_as_they_stand(load):
    study = load(
        'preset = "digits"\n[[list]]\nsteps = 5\nmodel.widths = []\n'
        "[[list]]\n[[list]]\nbatch_size = 8\n[list.optimizer]\nlearning_rate = 2\n"
    )
    base = PRESETS["digits"]
    assert study.configs == [
        replace(base, steps=5, model=replace(base.model, widths=())),
        base,
        replace(base, batch_size=8, optimizer=replace(base.optimizer, learning_rate=2.0)),
    ]
    assert study.axes == ()
    assert study.runs == (
        (("steps", 5), ("model.widths", ())),
        (),
        (("batch_size", 8), ("optimizer.learning_rate", 2.0)),
    )
    assert study.keys == ("steps", "model.widths", "batch_size", "optimizer.learning_rate")
    assert study.values("model.widths").tolist() == ["none", "32", "32"]
    np.testing.assert_array_equal(study.values("batch_size"), [np.nan, np.nan, 8])
    assert study.values("data.path").tolist() == ["none"] * 3


def test_each_listed_run_is_done_on_the_whole_grid(load):
    study = load(
        '[[list]]\noptimizer.name = "gd"\noptimizer.learning_rate = 1\n'
        '[[list]]\noptimizer.name = "adam"\noptimizer.learning_rate = 0.1\n'
        "[grid]\nmodel.seed = [0, 1]\nsteps = [7]\n"
    )
    assert study.configs == [
        RunConfig(
            steps=7,
            model=ModelConfig(seed=seed),
            optimizer=OptimizerConfig(name=name, learning_rate=rate),
        )
        for name, rate in (("gd", 1.0), ("adam", 0.1))
        for seed in (0, 1)
    ]
    # `steps` is an axis of one value, and does not vary.
    assert study.keys == ("optimizer.name", "optimizer.learning_rate", "model.seed")
    assert study.values("optimizer.name").tolist() == ["gd", "gd", "adam", "adam"]


def test_shorthands_write_axes_out(load):
    study = load(
        "[grid]\nmodel.seed = {from = 3, to = 6}\nschedule.period = {logspace = [10, 300, 4]}\n"
        "optimizer.learning_rate = {logspace = [1, 0.01, 5]}\n"
        "[grid.schedule.static_from]\nlogspace = [1, 9, 3]\n"
    )
    axes = dict(study.axes)
    assert axes["model.seed"] == (3, 4, 5, 6)
    # 10 · 30^(1/3) = 31.07 and 10 · 30^(2/3) = 96.55
    assert axes["schedule.period"] == (10, 31, 97, 300)
    assert axes["schedule.static_from"] == (1, 3, 9)
    assert all(type(value) is int for value in axes["schedule.period"])
    rates = axes["optimizer.learning_rate"]
    np.testing.assert_allclose(rates, 10 ** np.array([0, -0.5, -1, -1.5, -2]), rtol=1e-14)
    assert (rates[0], rates[-1]) == (1.0, 0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 5\n", r"neither \[grid\] nor \[\[list\]\] has runs; .* schedule\.amplitude = \["),
        ("[grid]\n", r"neither \[grid\] nor"),
        ("list = []\n", r"neither \[grid\] nor"),
        ("stepz = 5\n[grid]\nmodel.seed = [0]", r"stepz is not a key; did you mean steps\?"),
        ('preset = "digit"\n', r"preset 'digit' is unknown; did you mean digits\?"),
        ("schedule = 3\n", r"schedule is 3; expected a table \[schedule\]"),
        ("grid = 3\n", r"grid is 3; expected a table \[grid\]"),
        ("measures = 3\n", r"measures is 3; expected a table \[measures\]"),
        ("list = 3\n", r"list is 3; expected tables \[\[list\]\], one for each run"),
        ("[list]\nsteps = 3\n", r"list is \{'steps': 3\}; expected tables \[\[list\]\]"),
        ("list = [3]\n", r"list is \[3\]; expected tables"),
        (
            "[grid]\nschedule.perod = [3]",
            r"grid\.schedule\.perod is not a key; did you mean grid\.schedule\.period\?",
        ),
        ("[grid]\nseed = [3]", r"grid\.seed is not a key; did you mean grid\.batch_seed\?"),
        ("[grid]\nschedule = [3]", r"grid\.schedule is \[3\]; expected a table \[grid\.schedule\]"),
        ("[grid]\nsteps.x = [3]", r"grid\.steps is \{x = \[3\]\}; expected a list, \{from = 0"),
        ("[grid]\nsteps = 3", r"grid\.steps is 3; expected a list: write \[3\]"),
        (
            '[grid]\nmodel.activation = "tanh"',
            r'grid\.model\.activation is "tanh"; expected a list: write \["tanh"\]',
        ),
        (
            "[grid]\nschedule.amplitude = []",
            r"grid\.schedule\.amplitude is empty; expected at least one value",
        ),
        (
            "[grid]\nschedule.amplitude = [1, 2, 1.0]",
            r"grid\.schedule\.amplitude repeats 1\.0; expected each value once",
        ),
        ("[grid]\nmodel.widths = [[5], [5]]", r"grid\.model\.widths repeats \[5\]"),
        ("[grid]\nschedule.period = {logspace = [1, 3, 9]}", r"grid\.schedule\.period repeats 1;"),
        ("[grid]\nsteps = [1.5]", r"grid\.steps is 1\.5; expected a whole number"),
        ("[grid]\nmodel.widths = [50]", r"grid\.model\.widths is 50; expected a list"),
        ('[grid]\nmodel.init = ["he"]', r"grid\.model\.init is 'he'; choices: published"),
        (
            "[grid]\nmodel.seed = {form = 0, to = 3}",
            r"is \{form = 0, to = 3\}; expected a list, \{",
        ),
        (
            "[grid]\nmodel.seed = {from = 3, to = 2}",
            r"\{from = 3, to = 2\}; expected whole numbers, to at least from",
        ),
        ("[grid]\nmodel.seed = {from = 0.0, to = 2}", r"\{from = 0\.0, to = 2\}; expected whole"),
        (
            "[grid]\nmodel.seed = {from = false, to = 2}",
            r"\{from = false, to = 2\}; expected whole",
        ),
        ("[grid]\nmodel.seed = {from = 0, to = 1000000}", r"and at most 100,000 values"),
        (
            "[grid]\nsteps = {logspace = [1, 2]}",
            r"\{logspace = \[1, 2\]\}; expected first and last",
        ),
        ("[grid]\nsteps = {logspace = 3}", r"\{logspace = 3\}; expected first and last"),
        ("[grid]\nsteps = {logspace = [0, 2, 3]}", r"both above 0, and a whole number of values"),
        ("[grid]\nsteps = {logspace = [1, inf, 3]}", r"logspace = .*; expected first and last"),
        ("[grid]\nsteps = {logspace = [1, 2, 3.0]}", r"logspace = .*; expected first and last"),
        ("[grid]\nsteps = {logspace = [1, 2, 1]}", r"logspace = .*; expected first and last"),
        ("[grid]\nsteps = {logspace = [1, 2, true]}", r"logspace = .*; expected first and last"),
        ("[[list]]\n[[list]]\nstepz = 3", r"list\[1\]\.stepz is not a key; did you mean list\[1\]"),
        ('[[list]]\nsteps = "3"', r"list\[0\]\.steps is '3'; expected a whole number"),
        ("[[list]]\nmodel = 3", r"list\[0\]\.model is 3; expected a table"),
        (
            "[[list]]\nsteps = 3\n[grid]\nmodel.seed = [0]\nsteps = [4]",
            r"steps is in \[grid\] and in \[\[list\]\]; expected in one of them",
        ),
        (
            "[grid]\nmodel.widths = [[9], [0, 2]]\nschedule.amplitude = [1]",
            r"run 1 \(model\.widths = \[0, 2\], schedule\.amplitude = 1\.0\): model\.widths is",
        ),
        (
            "[grid]\nschedule.amplitude = [1, 0.5]",
            r"run 1 \(schedule\.amplitude = 0\.5\): schedule\.amplitude is 0\.5; expected",
        ),
        (
            '[[list]]\n[[list]]\ndata.name = "npz"\n',
            r'run 1 \(data\.name = "npz"\): data\.path is None; expected',
        ),
        (
            "[grid]\nsteps = [1]\n[measures]\nsharpnes = true",
            r"measures\.sharpnes is not a key; did you mean measures\.sharpness\?",
        ),
        ("[measures]\nsharpness = 1", r"measures\.sharpness is 1; expected true or false"),
        ("[measures]\ncurve_points = -1", r"measures\.curve_points is -1; expected at least 0"),
        (
            f"[measures]\ncurve_points = {2**63 - 1}",
            r"9223372036854775807; expected at least 0 and",
        ),
        (f"[grid]\nsteps = 0x{'f' * 9999}", "grid.steps is a number of thousands of digits; exp"),
        (f"[grid]\nsteps = [0x{'f' * 9999}]", "steps is a number of thousands of digits; expected"),
        (f"[grid]\nsteps = {{logspace = [1, 0x{'f' * 999}, 3]}}", "expected first and last value"),
        (
            "[grid]\nmodel.seed = [99999999999]",
            "model.seed is 99999999999; expected a whole number",
        ),
        (f"list = [{'3,' * 9999}]", r"list is \[3, 3.{70,80}; expected tables"),
        ("preset = [1]", r"preset is \[1\]; expected a string"),
        ("[measures]\nntk_examples = -2", r"measures\.ntk_examples is -2; expected at least 0"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(load, tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path / 'study.toml'))}: ") as error:
        load(text)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_toml_is_named(load, tmp_path):
    with pytest.raises(ConfigError, match=r"study\.toml is not valid TOML"):
        load("[grid\n")
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load_study(tmp_path / "none.toml")


def test_a_study_made_in_python_is_checked_in_the_same_way():
    study = Study(RunConfig(), (("model.widths", ([5], [6])), ("schedule.amplitude", (1, 2))))
    assert study.axes == (("model.widths", ((5,), (6,))), ("schedule.amplitude", (1.0, 2.0)))
    with pytest.raises(ConfigError, match=r"grid\.steps is there twice; expected once"):
        Study(RunConfig(), (("steps", (1,)), ("steps", (2,))))
    with pytest.raises(ConfigError, match=r"grid\.steps\.x is not a key; grid\.steps is no table"):
        Study(RunConfig(), (("steps.x", (1,)),))
    with pytest.raises(ConfigError, match=r"grid\.model is a table; expected one of its keys"):
        Study(RunConfig(), (("model", (1,)),))
    with pytest.raises(ConfigError, match=r"schedule\.perod is not a key"):
        study.values("schedule.perod")


def test_a_study_of_very_many_runs_is_counted_without_making_them(load):
    seeds = "{from = 0, to = 9999}"
    study = load(f"[grid]\nmodel.seed = {seeds}\ndata.seed = {seeds}\nbatch_seed = {seeds}\n")
    assert len(study) == 10**12


def test_many_runs_have_to_be_confirmed():
    study = Study(RunConfig(), (("model.seed", tuple(range(1200))),))
    with pytest.raises(ConfigError, match=r"^1,200 runs; expected at most 1,000 without --yes$"):
        require_size(study, 1000, yes=False)
    require_size(study, 1000, yes=True)
    require_size(study, 1200, yes=False)


def test_studies_have_an_end():
    seeds = tuple(range(2000))
    study = Study(RunConfig(), (("model.seed", seeds), ("data.seed", seeds)))
    with pytest.raises(ConfigError, match=r"^4,000,000 runs; expected at most 1,000,000, as the"):
        require_size(study, yes=True)
    keys = ("model.seed", "data.seed", "batch_seed", "steps", "data.points_per_class", "data.limit")
    with pytest.raises(ConfigError, match=r"^64000000000000000000 runs; expected at most 1,000,"):
        Study(RunConfig(), tuple((key, tuple(range(1, 2001))) for key in keys))


def test_json_gives_every_study_back(load):
    for text in (
        "[grid]\nmodel.widths = [[], [5], [6, 7]]\nschedule.amplitude = {logspace = [1, 9, 7]}\n",
        "[[list]]\nmodel.widths = [3]\n[[list]]\n[measures]\nsharpness = true\n",
        'preset = "digits"\n[[list]]\nsteps = 4\n[grid]\nmodel.init = ["published"]\n',
    ):
        study = load(text)
        assert Study.from_json(study.to_json()) == study
        assert Study.from_json(study.to_json()).configs == study.configs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a study: "),
        ("{}", "not a study: 'base'"),
        ("[]", "not a study: "),
        ('{"base": {"colour": 1}}', "colour is not a key"),
        ('{"base": {}, "measures": {}, "axes": [], "runs": []}', "neither"),
        ('{"base": {}, "measures": {}, "axes": [["steps", 3]], "runs": []}', "not a study: "),
        ('{"base": {}, "measures": {"a": 1}, "axes": [], "runs": []}', r"measures\.a is not a key"),
    ],
)
def test_json_of_no_study_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Study.from_json(text)
