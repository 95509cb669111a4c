"""Every knob is listed, described, bounded where it is a number, and read."""

import inspect
import re
from pathlib import Path

import pytest

from recsys.config import NightConfig, Section
from recsys.presets import PRESETS

ROOT = Path(__file__).parents[1]
SECTIONS: dict[str, type[Section]] = {name: field.annotation for name, field in NightConfig.model_fields.items()}
KNOBS = [(section, knob) for section, kind in SECTIONS.items() for knob in kind.model_fields]


def test_the_form_is_short_enough_to_read():
    assert len(KNOBS) <= 72
    assert all(len(kind.model_fields) <= 8 for kind in SECTIONS.values())


@pytest.mark.parametrize(("section", "knob"), KNOBS)
def test_a_knob_has_a_title_and_a_description(section, knob):
    field = SECTIONS[section].model_fields[knob]
    assert field.title
    assert field.description
    assert len(field.description) > 10


@pytest.mark.parametrize(("section", "knob"), KNOBS)
def test_a_number_has_a_bound(section, knob):
    schema = SECTIONS[section].model_json_schema()["properties"][knob]
    if schema.get("type") in ("integer", "number"):
        assert {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & set(schema), (
            "say how small or large it may be"
        )


@pytest.mark.parametrize(("section", "knob"), KNOBS)
def test_a_knob_is_read_somewhere(section, knob):
    readers = [p for top in ("recsys", "tasks") for p in (ROOT / top).rglob("*.py") if p.name != "config.py"]
    assert any(re.search(rf"\.{knob}\b", p.read_text()) for p in readers)


def test_the_sections_are_the_arguments_of_the_flow():
    from flows.nightly import nightly

    arguments = list(inspect.signature(nightly.fn).parameters)
    assert arguments == ["source", *SECTIONS]
    for name, kind in SECTIONS.items():
        assert inspect.signature(nightly.fn).parameters[name].default == kind(), (
            "defaults in code are production values"
        )


def test_the_form_shows_titles_bounds_and_help():
    from flows.nightly import nightly

    definitions = nightly.parameters.model_dump()["definitions"]
    for kind in SECTIONS.values():
        shown = definitions[kind.__name__]["properties"]
        for knob, field in kind.model_fields.items():
            assert shown[knob]["title"] == field.title
            assert shown[knob]["description"] == field.description
    assert definitions["TeacherConfig"]["properties"]["epochs"]["minimum"] == 1
    assert definitions["DataConfig"]["properties"]["split"]["enum"] == ["temporal", "leave_one_out"]


def test_presets_are_whole_configurations():
    assert list(PRESETS) == ["quick", "standard", "large"]
    assert PRESETS["standard"] == NightConfig()
