"""A packaged version through MLflow itself: its parameters are declared, and `explain` adds the reasons."""

import json

import numpy as np
import pandas as pd
import pytest

from recsys.decoder import DecoderShape
from recsys.explanation import reasons_by_id
from recsys.export import Publication, export
from recsys.histories import Catalog
from recsys.runtime import Runtime
from recsys.student import Student
from tasks.adapters.packaging import ANSWERS, save

HISTORIES = [["item-4", "item-6", "item-2"], ["item-1"], ["never heard of"], []]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("packaged")
    nothing = [None] * 12
    catalog = Catalog([f"item-{code}" for code in range(1, 13)], nothing, nothing, nothing)
    student = Student.untrained(DecoderShape.of(12, 16, 1, 4), 0.0, seed=0).eval()
    export(student, Publication(catalog, np.arange(12), "exclude", {}), 8, place / "artifact")
    save(place / "package", place / "artifact", "recsys.runtime", ANSWERS)
    return place


@pytest.fixture(scope="module")
def loaded(place):
    from mlflow import pyfunc

    return pyfunc.load_model(str(place / "package"))


def test_its_parameters_are_declared(loaded):
    declared = {param.name: (param.default, param.dtype.name) for param in loaded.metadata.signature.params}
    assert declared == {"k": (10, "long"), "explain": (False, "boolean")}


def test_without_the_parameter_the_answer_is_what_it_was(loaded, place):
    frame = pd.DataFrame({"history": HISTORIES}, index=[5, 6, 7, 8])
    expected = Runtime.open(place / "artifact").recommend(HISTORIES, 3)
    for params in ({"k": 3}, {"k": 3, "explain": False}):
        answer = loaded.predict(frame, params=params)
        assert list(answer.columns) == ["item_ids", "scores", "sources"]
        assert answer["item_ids"].tolist() == [[item.item_id for item in row] for row in expected]


def test_with_it_each_item_has_its_reasons(loaded, place):
    frame = pd.DataFrame({"history": HISTORIES}, index=[5, 6, 7, 8])
    plain, answer = loaded.predict(frame, params={"k": 3}), loaded.predict(frame, params={"k": 3, "explain": True})
    assert list(answer.columns) == ["item_ids", "scores", "sources", "reasons"]
    pd.testing.assert_frame_equal(answer[plain.columns], plain)
    runtime = Runtime.open(place / "artifact")
    assert answer["reasons"].tolist() == [reasons_by_id(runtime, history, 3) for history in HISTORIES]
    drops = [reason["drop"] for item in answer["reasons"][5] for reason in item]
    assert drops
    assert min(drops) > 0
    assert answer["reasons"][6] == [[{"item_id": "item-1", "drop": None}]] * 3
    assert answer["reasons"][7] == answer["reasons"][8] == [[], [], []]
    json.dumps(answer["reasons"].tolist(), allow_nan=False)


def test_mlflow_refuses_another_kind_of_value(loaded):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="explain"):
        loaded.predict(pd.DataFrame({"history": HISTORIES}), params={"explain": "because"})
