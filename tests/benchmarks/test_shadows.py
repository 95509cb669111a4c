"""The shadow attack finds what is planted in the answers of models, and nothing where nothing is."""

import numpy as np
import pytest

from benchmarks.membership import as_markdown, likelihood_ratios, mean_auc, over_users, told

SHADOWS, USERS = 8, 400


def answers(leak: float) -> tuple[np.ndarray, np.ndarray]:
    """Users who differ among themselves far more than a model differs by having learnt from them."""
    rng = np.random.default_rng(0)
    members = rng.random((SHADOWS, USERS)) < 0.5
    own = rng.normal(0, 5, USERS)
    return members, own + leak * members + rng.normal(0, 1, members.shape)


def test_what_is_planted_is_found_by_shadows_and_hardly_by_the_answer_alone():
    found = told(*answers(leak=2.0))
    assert found["shadow_auc"]["low"] > 0.85
    assert 0.5 < found["loss_auc"]["value"] < 0.65
    assert found["shadow_caught"]["value"] > 5 * found["loss_caught"]["value"]
    assert as_markdown([{"model": "teacher", **found}]).count("|") == 18


def test_where_nothing_is_planted_nothing_is_found():
    found = told(*answers(leak=0.0))
    assert found["shadow_auc"]["low"] < 0.5 < found["shadow_auc"]["high"]
    assert found["shadow_caught"]["value"] == pytest.approx(0.01, abs=0.01)


def test_a_user_whom_all_others_knew_is_left_out():
    members, said = answers(leak=1.0)
    members[1:, 7] = True
    ratios = likelihood_ratios(members, said)
    assert np.isnan(ratios[0, 7])
    assert np.isfinite(over_users(mean_auc, members, ratios).value)
