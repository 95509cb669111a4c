"""From a preset and `section.knob=value` words to a whole configuration. The one resolver."""

import difflib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from recsys.config import MonitorConfig, NightConfig, Section
from recsys.errors import ConfigError
from recsys.presets import PRESETS


def resolve(preset: str, overrides: Iterable[str] = ()) -> NightConfig:
    """The preset's sections with each override merged into its own section.

    Raises ConfigError naming the preset or knob, what was given and what is allowed.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"there is no preset {preset!r}", where="--preset", mend=f"Choose one of {', '.join(PRESETS)}."
        )
    return _overridden(NightConfig, PRESETS[preset].model_dump(), overrides)


def resolve_monitor(overrides: Iterable[str] = ()) -> MonitorConfig:
    """As `resolve`, for the monitor's only section: `monitor.decay=0.1`."""
    return _overridden(_Watch, _Watch().model_dump(), overrides).monitor


class _Watch(Section):
    monitor: MonitorConfig = MonitorConfig()


Whole = TypeVar("Whole", bound=Section)


def _overridden(kind: type[Whole], sections: dict[str, Any], overrides: Iterable[str]) -> Whole:
    for override in overrides:
        section, knob, value = _split(override)
        _require(section, sections, "section", where=f"--set {override}")
        _require(knob, sections[section], "knob", where=f"--set {override}", prefix=f"{section}.")
        sections[section][knob] = value
    try:
        return kind.model_validate(sections)
    except ValidationError as error:
        raise ConfigError(*_first_fault(error), mend="See the knobs in recsys/config.py or the form.") from None


def _split(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, knob = name.partition(".")
    section, knob = section.strip(), knob.strip()
    if not (equals and dot and section and knob):
        raise ConfigError(
            f"{override!r} is not of the form section.knob=value", where="--set", mend="Write --set search.trials=8."
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON; more digits than Python reads; too deep
        value = text
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise ConfigError("the value is no text", where=f"--set {override}", mend="Write UTF-8.") from error
    return section, knob, value


def _require(name: str, known: Iterable[str], kind: str, *, where: str, prefix: str = "") -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {prefix}{near[0]}?" if near else f"Known: {', '.join(known)}."
        raise ConfigError(f"there is no {kind} {prefix}{name}", where=where, mend=hint)


def _first_fault(error: ValidationError) -> tuple[str]:
    fault = error.errors()[0]
    knob = ".".join(str(part) for part in fault["loc"])
    given = fault.get("input")
    return (f"{knob}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, but {given!r} was given",)
