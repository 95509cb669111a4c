"""What became of a promotion or rollback, said on the page and in the log of its flow run."""

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from recsys import wording
from tasks.change_champion import Moved


def tell_move(moved: Moved) -> Moved:
    """Writes the artifact `champion` and gives what it was handed."""
    champion = "none" if moved.champion is None else f"version {moved.champion}"
    lines = [f"**{wording.literal(wording.plain(moved.sentence, 600))}**", f"Champion: {champion}."]
    lines += [wording.literal(wording.plain(note, 600)) for note in moved.notes]
    create_markdown_artifact("\n\n".join(lines), key="champion", description="Who serves, and how it came to it")
    get_run_logger().info("%s", moved.sentence)
    return moved
