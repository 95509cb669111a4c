"""Which soft labels a night may go on with: the key and the shelf by kind of label."""

from recsys.config import LabelsConfig
from tasks.keeping import _SHELF
from tasks.make_soft_labels import _kind, _knobs


def test_with_the_later_knobs_as_they_come_key_and_shelf_are_those_of_before():
    assert _knobs(LabelsConfig()) == {"top_k": 50}
    assert _kind(LabelsConfig()) == ""


def test_each_kind_of_label_has_a_key_and_a_shelf_of_its_own():
    kinds = [LabelsConfig(states=states, teacher_bits=bits) for states in (False, True) for bits in (32, 8)]
    assert len({str(_knobs(kind)) for kind in kinds}) == len({_kind(kind) for kind in kinds}) == 4
    assert _knobs(kinds[3]) == {"top_k": 50, "states": True, "teacher_bits": 8}


def test_housekeeping_knows_every_shelf():
    for kind in ("", "-states", "-8bit", "-states-8bit"):
        assert _SHELF.match(f"labels-{'a' * 64}-50{kind}")
        assert not _SHELF.match(f"labels-{'a' * 64}-50{kind}-for-{'b' * 64}")
