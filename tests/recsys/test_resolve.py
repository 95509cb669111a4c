"""The resolver merges into a section and refuses in sentences."""

import pytest

from recsys.errors import ConfigError
from recsys.presets import QUICK, STANDARD
from recsys.resolve import resolve


def test_a_preset_alone_is_its_sections():
    assert resolve("standard") == STANDARD


def test_an_override_keeps_the_other_knobs_of_its_section():
    config = resolve("quick", ["teacher.epochs=3", 'events.event_weights={"view": 0}'])
    assert config.teacher.epochs == 3
    assert config.teacher.width == QUICK.teacher.width
    assert config.events.event_weights == {"view": 0}
    assert config.search == QUICK.search


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.epoch=3", r"no knob teacher\.epoch .*Did you mean teacher\.epochs\?"),
        ("teachers.epochs=3", r"no section teachers .*Did you mean teacher\?"),
        ("teacher.epochs=0", r"teacher\.epochs: input should be greater than or equal to 1, but 0 was given"),
        ("teacher.epochs=many", r"teacher\.epochs: input should be a valid integer.*'many' was given"),
        ("data.split=random", r"data\.split: input should be 'temporal' or 'leave_one_out'"),
        ("epochs=3", r"not of the form section\.knob=value"),
        ("teacher.epochs", r"not of the form section\.knob=value"),
    ],
)
def test_a_wrong_override_is_refused_with_what_to_do(override, message):
    with pytest.raises(ConfigError, match=message):
        resolve("quick", [override])


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="Choose one of quick, standard, large"):
        resolve("fast")
