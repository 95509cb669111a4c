"""Items that came after a model was made, ranked by it through their texts: no training, no new file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load

from recsys.artifact import CARD, WEIGHTS, Card, verify
from recsys.errors import ConfigError
from recsys.histories import Catalog
from recsys.item_columns import ItemColumns
from recsys.runtime import Runtime
from recsys.text_map import TextMap


def text_map_of(folder: Path) -> TextMap:
    """The text map among the weights of the artifact in `folder`. Raises ConfigError where there is none."""
    manifest = verify(folder)
    card = Card.from_bytes(manifest.read(folder, CARD))
    if not card.text:
        raise ConfigError(
            "the model has learnt nothing of texts, so it cannot rank new items by theirs",
            mend="Name a version that was made from items with titles, or wait for the next night.",
        )
    return TextMap.of_tensors(load(manifest.read(folder, WEIGHTS)), card.text)


def with_new_items(runtime: Runtime, text_map: TextMap, items: Catalog, texts: np.ndarray) -> Runtime:
    """The model with those `items` that it does not know; `texts` (n, T) were read by `text_map.reader`.

    An item without a text would have a row of zeros, which is no opinion: it is left out.
    """
    new = [place for place, item_id in enumerate(items.item_ids) if item_id not in runtime.code_of]
    new = [place for place in new if texts[place].any()]
    columns = ItemColumns(
        [items.item_ids[place] for place in new],
        np.zeros(len(new), np.int64),
        pa.array([items.titles[place] for place in new], pa.string()),
        pa.array([items.categories[place] for place in new], pa.string()),
    )
    return runtime.with_items(columns, text_map.rows(texts[new]))
