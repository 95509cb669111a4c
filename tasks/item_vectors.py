"""What a language model read of each item: made once a text, kept in the home's cache."""

import numpy as np

from recsys.dataset import Dataset
from recsys.item_text import TextEncoder, cached_vectors
from tasks.night import Step


def item_vectors(at: Step, encoder: TextEncoder, dataset: Dataset) -> np.ndarray | None:
    """(N, T) float32, zeros for an item without a text; None where no item has one. Encoding is a quarter of the step."""
    catalog = dataset.catalog
    if not any(catalog.titles) and not any(catalog.categories) and not any(catalog.descriptions):
        return None
    return cached_vectors(
        encoder,
        catalog,
        at.settings.cache / "text",
        lambda share: at.progress(share / 4, f"reading item texts, {share:.0%}"),
    )
