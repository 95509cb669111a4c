"""Versions that a night registered while users were forgotten in another home: marked, each once, and none that is not of before."""

from dataclasses import replace
from types import SimpleNamespace

from tasks.adapters.registry import ERA, STUDENT, UNFORGOTTEN
from tasks.eras import catch_up, mark_earlier
from tasks.workshop import Workshop


def marked(workshop) -> dict[int, str]:
    versions = workshop.registry.all_versions(STUDENT)
    return {each.number: each.tags[UNFORGOTTEN] for each in versions if UNFORGOTTEN in each.tags}


def in_store_cleared_in(era: int, workshop: Workshop) -> Workshop:
    return replace(workshop, store=SimpleNamespace(shared=SimpleNamespace(cleared=era)))


def test_versions_of_earlier_eras_are_marked_and_may_not_serve(workshop):
    workshop.registry.set_tags(STUDENT, 2, {ERA: "1"})
    workshop.registry.set_tags(STUDENT, 3, {ERA: "2"})
    workshop.registry.set_tags(STUDENT, 4, {ERA: "0", UNFORGOTTEN: "2026-01-01"})
    workshop.registry.set_tags(STUDENT, 5, {ERA: "somebody wrote this"})

    mark_earlier(in_store_cleared_in(0, workshop))
    assert marked(workshop) == {4: "2026-01-01"}, "where nobody was forgotten nothing is of before, whatever the key"
    mark_earlier(in_store_cleared_in(2, workshop))
    found = marked(workshop)
    assert found.keys() == {1, 2, 4}
    assert found[4] == "2026-01-01"
    assert "has learnt from users who were forgotten" in workshop.registry.version(STUDENT, 1).remembers


def test_a_home_of_its_own_has_nothing_to_catch_up_with(workshop):
    mark_earlier(workshop)
    assert catch_up(workshop) == 0
    assert marked(workshop) == {}
