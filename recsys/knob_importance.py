"""How much each knob of a search mattered, by its complete trials."""

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from recsys.search import TEMPERATURES, WEIGHTS, Trial

LEAST_TRIALS = 6
"""Complete distilled trials below which nothing is said."""


def knob_importances(trials: Sequence[Trial]) -> Mapping[str, float]:
    """Shares, largest first and summing to 1, of the knobs that took several values; none from too few trials.

    Functional ANOVA over a random forest (Hutter et al. 2014, ICML). Of few trials it is a hint: where the width truly
    decides, 6 trials of random knobs give it .53, give or take .19, and 12 give .93. Not PED-ANOVA, which needs no
    forest: a sampler soon tries the better width alone, and then sees nothing set the better half apart (.16, .47).
    """
    some = [trial for trial in trials if trial.state == "complete" and trial.weight > 0]
    space = _space(some)
    if len(some) < LEAST_TRIALS or len(space) < 2 or len({trial.validation_ndcg for trial in some}) == 1:
        return {}
    # Here: importing scikit-learn takes a second, and most nights have too few trials.
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    # The undistilled trial has no knobs, and Optuna asks only after those that all trials have: a study of its own.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in some:
        params = {name: getattr(trial, name) for name in space}
        study.add_trial(create_trial(params=params, distributions=space, value=trial.validation_ndcg))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: float(share) for name, share in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))}


def _space(trials: Sequence[Trial]) -> dict[str, BaseDistribution]:
    """What was chosen from, of the knobs that took more than one value."""
    ranges = {"weight": WEIGHTS, "temperature": TEMPERATURES}
    names = ("width", "dropout", "weight", "k", "temperature")
    values = {name: sorted({getattr(trial, name) for trial in trials}) for name in names}
    return {
        name: FloatDistribution(*ranges[name]) if name in ranges else CategoricalDistribution(several)
        for name, several in values.items()
        if len(several) > 1
    }
