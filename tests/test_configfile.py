import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.configfile import from_json, load_toml, override, preset, to_json
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.presets import PRESETS


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_overrides_the_defaults_key_by_key(tmp_path):
    path = write(
        tmp_path,
        'steps = 12\n[schedule]\namplitude = 3\nname = "triangle"\n[model]\nwidths = [4, 5]\n',
    )
    config = load_toml(path)
    assert config == RunConfig(
        steps=12, schedule=ScheduleConfig(amplitude=3.0), model=ModelConfig(widths=(4, 5))
    )
    assert isinstance(config.schedule.amplitude, float)
    assert isinstance(config.model.widths, tuple)


def test_a_file_may_name_its_preset(tmp_path):
    path = write(tmp_path, 'preset = "digits"\nsteps = 5\n')
    assert load_toml(path) == replace(PRESETS["digits"], steps=5)


def test_the_callers_base_wins_over_the_files_preset(tmp_path):
    path = write(tmp_path, 'preset = "digits"\nsteps = 5\n')
    assert load_toml(path, PRESETS["published"]) == replace(PRESETS["published"], steps=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[schedule]\nperod = 3", r"schedule\.perod is not a key; did you mean schedule\.period\?"),
        ("stepz = 3", r"stepz is not a key; did you mean steps\?"),
        ("[zzz]\na = 1", r"zzz is not a key; choices: data, model"),
        ("schedule = 3", r"schedule is 3; expected a table \[schedule\]"),
        ("steps = 1.5", r"steps is 1\.5; expected a whole number"),
        ("steps = true", r"steps is True; expected a whole number"),
        ("[schedule]\namplitude = true", r"schedule\.amplitude is True; expected a number"),
        ('[schedule]\namplitude = "7"', r"schedule\.amplitude is '7'; expected a number"),
        ("[data]\npath = 3", r"data\.path is 3; expected a string"),
        ("[model]\nwidths = 3", r"model\.widths is 3; expected a list"),
        ("[model]\nwidths = [1.5]", r"model\.widths is 1\.5; expected a whole number"),
        (
            '[model]\nactivation = "rleu"',
            r"activation is 'rleu'; did you mean relu\? choices: relu",
        ),
        ('[optimizer]\nname = "qqq"', r"optimizer\.name is 'qqq'; choices: gd, heavy-ball"),
        ("[schedule]\nperiod = 0", r"schedule\.period is 0; expected a whole number of at least 1"),
        ('preset = "publishd"', r"'publishd' is unknown; did you mean published\?"),
        ("preset = 3", r"preset is 3; expected a string"),
        ("linearize = true", r"linearize is True; choices: 0, 1, 2"),
        (f"steps = {'9' * 10_000}", r"a number too long: Exceeds the limit \(4300 digits\)"),
        (f"steps = 0x{'f' * 10_000}", "steps is a number of thousands of digits; expected at most"),
        (f"schedule.amplitude = 0x{'f' * 10_000}", "thousands of digits; expected a number"),
        (f"steps = [{'9,' * 1000}]", r"steps is \[9, 9.{60,90}\]; expected a whole number"),
        (f"steps = {'[' * 5000}{']' * 5000}", "is nested too deep to be read"),
        (f"{'a' * 5000} = 1", r"a{30,40} \.\.\. a{30,40} is not a key"),
        (f"{'a.' * 5000}b = 1", "is not a key"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        load_toml(path)
    assert "\n" not in str(error.value)


def test_an_error_names_the_file(tmp_path):
    path = write(tmp_path, "steps = 0")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: steps is 0"):
        load_toml(path)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_toml(write(tmp_path, "steps == 3"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        load_toml(tmp_path / ("x" * 300))
    (tmp_path / "large.toml").write_bytes(b"#" * (2**24 + 1))
    with pytest.raises(ConfigError, match=r"large\.toml has more than 16,777,216 bytes"):
        load_toml(tmp_path / "large.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read: not UTF-8 text"):
        load_toml(binary)


def test_an_unknown_preset_is_refused_with_the_choices():
    assert preset("published") is PRESETS["published"]
    with pytest.raises(ConfigError, match=r"'digit' is unknown; did you mean digits\?.*published"):
        preset("digit")


def test_json_with_an_unknown_key_is_refused():
    with pytest.raises(ConfigError, match="colour is not a key"):
        from_json('{"colour": 1}')


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"steps": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ConfigError, match=r"^the configuration is not JSON: "):
        from_json(text)
    with pytest.raises(ConfigError, match=r"^the configuration is \[1\]; expected a table"):
        from_json("[1]")


def test_older_files_drew_their_batches_in_epochs():
    values = json.loads(to_json(RunConfig(batch_size=3, batch_sampling="independent")))
    del values["batch_sampling"]
    assert from_json(json.dumps(values)) == RunConfig(batch_size=3, batch_sampling="epochs")


def test_optional_values_may_be_none():
    assert override(RunConfig(batch_size=3), {"batch_size": None}).batch_size is None


configs = st.builds(
    RunConfig,
    data=st.builds(DataConfig, noise=st.floats(0, 10), limit=st.none() | st.integers(1, 99)),
    model=st.builds(
        ModelConfig,
        widths=st.lists(st.integers(1, 9)).map(tuple),
        init=st.sampled_from(["published", "he-normal"]),
    ),
    loss=st.builds(LossConfig, name=st.sampled_from(["cross-entropy", "squared-error"])),
    schedule=st.builds(
        ScheduleConfig,
        amplitude=st.floats(1, 1e30),
        period=st.integers(1, 10**9),
        counting=st.sampled_from(["exact", "published"]),
        static_from=st.none() | st.integers(0, 10**9),
    ),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-300, 1e300)),
    batch_size=st.none() | st.integers(1, 99),
)


@given(configs)
def test_json_gives_every_configuration_back(config):
    text = to_json(config)
    assert from_json(text) == config
    assert json.loads(text)["schedule"]["amplitude"] == config.schedule.amplitude
