"""A look of the monitor as one self-contained HTML page: no script, nothing fetched, every text escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from recsys import wording
from recsys.health import Health
from recsys.small_cells import told
from recsys.statistics import Interval
from recsys.story import Estimate


def render(health: Health) -> str:
    """The whole page. Equal looks give equal pages."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "decimal": wording.decimal,
        "count": wording.count,
        "users": told,
        "moment": wording.moment,
        "title": wording.plain,
        "sentence": lambda text: wording.plain(text, 600),
        "bounds": _bounds,
        "change": lambda interval: _bounds(interval, "change"),
    }
    return environment.get_template("health.html.j2").render(health=health)


def _bounds(interval: Interval, unit: str = "share") -> str:
    estimate = Estimate(interval.value, interval.low, interval.high)
    return wording.bounds(estimate, "change" if unit == "change" else "share")
