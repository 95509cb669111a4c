"""Checkup of the habit itself: how old data and last success are, and which nights were missed.

What is late is red where nights are operated, by servers and a schedule, and yellow where a person runs them.
"""

from recsys import wording
from tasks.adapters.records import nights_ended
from tasks.finding import Finding, doubtful, ill, well
from tasks.patient import Patient

_NO_NIGHT = "no night has ended well in this home"


def data(patient: Patient) -> Finding:
    """The age of the newest event against what the monitor calls stale."""
    times = [each.newest for each in patient.inputs if each.newest is not None]
    if not times:
        return doubtful(_NO_NIGHT, "recsys nightly")
    days, most = patient.days_since(max(times)), patient.monitor.max_age_days
    newest = f"the newest event is of {wording.moment(max(times))}"
    if patient.is_sample:
        return well(f"{newest}: the built-in shop, old by nature")
    if days <= most:
        return well(f"{newest}, {_days(days)} ago")
    return _late(patient, f"{newest}, {_days(days)} ago, more than {most:g}: nothing new arrives")


def last_night(patient: Patient) -> Finding:
    """When a night last ended well."""
    ended = nights_ended(patient.tracking, most=1)
    if not ended:
        return doubtful(_NO_NIGHT, "recsys nightly")
    days, most = patient.days_since(ended[0].ended.timestamp()), patient.monitor.max_age_days
    sentence = f"{ended[0].name} ended well {_days(days)} ago: {ended[0].decision}"
    return well(sentence) if days <= most else _late(patient, f"{sentence}; more than {wording.many(most, 'day')}")


def missed(patient: Patient) -> Finding | None:
    """Slots of the schedule that no night has made up for."""
    url = patient.servers.get("prefect")
    if url is None:
        return None
    slots = patient.about(url).missed()
    if not slots:
        return well("none")
    since = f"{slots[0]:%Y-%m-%d %H:%M} UTC"
    return ill(f"{wording.many(len(slots), 'scheduled night')} since {since} did not end well", "recsys nightly")


def _late(patient: Patient, sentence: str) -> Finding:
    mend = "recsys nightly"
    return ill(sentence, mend) if "prefect" in patient.servers else doubtful(sentence, mend)


def _days(days: float) -> str:
    return wording.duration(days * 86_400) if days < 2 else wording.many(round(days), "day")
