"""Shows in a run whose work its parts are: a link to the cluster's own page, where it has one."""

from prefect.artifacts import create_link_artifact

from tasks.adapters.execution import Workers


def show_workers(workers: Workers) -> None:
    """A link among the run's artifacts. The page lives as long as the cluster."""
    if workers.page:
        create_link_artifact(
            link=workers.page,
            link_text="Dask's page",
            key="workers",
            description=f"The parts are worked on by {workers}",
        )
