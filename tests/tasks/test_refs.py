"""Refs are small, closed, and the same after a way through JSON."""

import pytest
from pydantic import ValidationError

from tasks.adapters.store import Stored
from tasks.refs import DatasetRef, LabelsRef, Ref, TeacherRef, digest_of

STORED = Stored("build", "ab" * 32, "cd" * 32, rows=7, reused=True, seconds=1.5)


def test_a_ref_names_what_was_stored():
    ref = DatasetRef.of(STORED, users=3, items=4, as_of=5)
    assert (ref.step, ref.key, ref.digest, ref.users, ref.items, ref.as_of) == ("build", "ab" * 32, "cd" * 32, 3, 4, 5)


def test_a_ref_survives_json():
    ref = LabelsRef.of(STORED, segments=(Ref.of(STORED),), positions=12, teacher=TeacherRef.of(STORED, items=1))
    assert LabelsRef.model_validate_json(ref.model_dump_json()) == ref


def test_a_ref_is_closed_and_frozen():
    with pytest.raises(ValidationError):
        TeacherRef.of(STORED, items=1, path="/tmp/x")
    ref = TeacherRef.of(STORED, items=1)
    with pytest.raises(ValidationError):
        ref.items = 2


def test_the_digest_of_several_depends_on_their_order():
    assert digest_of(["a", "b"]) != digest_of(["b", "a"])
    assert digest_of(["a", "b"]) == digest_of(("a", "b"))
