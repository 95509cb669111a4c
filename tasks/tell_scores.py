"""tell-scores: what a scoring came to, on its run's page in Prefect and with the champion's night in MLflow."""

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from recsys import wording
from recsys.errors import RegistryError
from recsys.small_cells import told
from tasks.adapters.registry import STUDENT
from tasks.batch_scores import BatchScores, Published
from tasks.night import TASK_OPTIONS
from tasks.workshop import Workshop


@task(name="tell-scores", **TASK_OPTIONS)
def tell_scores(published: Published) -> BatchScores:
    """Writes the artifact `scores`, and metrics of the run that made the model, a step each as-of time."""
    scores, workshop = published.scores, Workshop.here()
    rows = [{"what": name, "value": value} for name, value in in_words(scores)]
    create_table_artifact(rows, key="scores", description=scores.sentence)
    get_run_logger().info("%s", scores.sentence)
    try:
        run_id = workshop.registry.version(STUDENT, scores.version).run_id
        if run_id:
            named = {f"scores/{name}": float(value) for name, value in scores.counts.items()}
            workshop.tracking.log_metrics(run_id, named, step=scores.as_of)
    except RegistryError as error:  # the run was deleted: the scores are there all the same
        get_run_logger().warning("%s", f"MLflow has no run to note the scores with: {error}")
    return scores


def in_words(scores: BatchScores) -> list[tuple[str, str]]:
    """Line by line."""
    counts = scores.counts
    by_popularity = wording.count(counts["by_popularity"]) if "by_popularity" in counts else "some"
    return [
        ("Folder", scores.name),
        ("Version", str(scores.version)),
        ("As of", wording.moment(scores.as_of)),
        ("Users", f"{told(scores.users)}, {by_popularity} of them by popularity"),
        ("Rows", f"{wording.count(counts.get('rows'))}, up to {scores.k} items a user"),
        ("Compared with", scores.before or wording.ABSENT),
        ("Lists that changed", wording.percent(counts.get("share_changed"))),
        ("Mean overlap", wording.percent(counts.get("overlap"))),
    ]
