"""Writes a decoder as an artifact, and refuses to when the file does not score as the decoder does."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file

from recsys.artifact import CARD, GOLDEN, ITEMS, MODEL, WEIGHTS, Card, Golden, Manifest, write_manifest
from recsys.decoder import Decoder
from recsys.errors import ArtifactError
from recsys.graph import Bits, serving_graph
from recsys.histories import Catalog
from recsys.item_columns import ItemColumns
from recsys.neighbourhood import Opinion
from recsys.quantize import RowTable, dequantized, rounded
from recsys.runtime import TOLERANCE, Runtime
from recsys.serving_graph import ServingGraph
from recsys.text_map import TextMap

GOLDEN_REQUESTS = 6
GOLDEN_K = 10

ITEM_SCHEMA = pa.schema(
    [
        pa.field("code", pa.int32(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("category", pa.string()),
        pa.field("count", pa.int64(), nullable=False),  # training events
    ]
)


@dataclass(frozen=True)
class Publication:
    """What goes into an artifact beside the weights."""

    catalog: Catalog
    counts: np.ndarray  # (N,) int64 training events of each item
    repeats: Literal["exclude", "allow"]
    lineage: Mapping[str, str]  # name of a parent -> its digest
    opinion: Opinion | None = None  # the student's neighbours
    text_map: TextMap | None = None  # how a text becomes a row of the item table


def export(decoder: Decoder, publication: Publication, bits: Bits, out: Path) -> Manifest:
    """Write the artifact of `decoder` into the folder `out`, its item table in `bits` bits.

    ArtifactError when the catalog is not the decoder's, or when a score of the file is further from the
    decoder's than `runtime.TOLERANCE`, at lengths 1, 2 and the longest, alone and padded into one batch of
    three.
    """
    if publication.catalog.items != decoder.shape.items:
        raise ArtifactError(
            f"the model knows {decoder.shape.items} items, the catalog has {publication.catalog.items}",
            mend="Grow the model to the catalog first.",
        )
    opinion = publication.opinion
    model = serving_graph(decoder, bits, opinion)
    graph = ServingGraph(model)
    _refuse_other_scores(rounded(decoder, bits), graph, bits, opinion)
    card = _card(decoder, publication, bits)
    items = ItemColumns(publication.catalog.item_ids, publication.counts)
    out.mkdir(parents=True, exist_ok=True)
    (out / MODEL).write_bytes(model)
    _write_weights(decoder, bits, publication, out / WEIGHTS)
    _write_items(publication, out / ITEMS)
    (out / CARD).write_bytes(card.to_bytes())
    (out / GOLDEN).write_bytes(_golden(Runtime(graph, card, items)).to_bytes())
    return write_manifest(out)


def _card(decoder: Decoder, publication: Publication, bits: Bits) -> Card:
    shape, opinion = decoder.shape, publication.opinion
    return Card(
        items=shape.items,
        length=shape.length,
        width=shape.width,
        heads=shape.heads,
        ffn=shape.ffn,
        bits=bits,
        repeats=publication.repeats,
        neighbours=opinion.neighbourhood.kept if opinion else 0,
        newest=opinion.neighbourhood.newest if opinion else 0,
        neighbours_weight=opinion.weight if opinion else 0.0,
        text=dict(publication.text_map.reader) if publication.text_map else {},
        lineage=dict(publication.lineage),
    )


def _write_weights(decoder: Decoder, bits: Bits, publication: Publication, file: Path) -> None:
    """Every tensor under its name in the decoder; a table of whole numbers is `.rows` and `.scales`.

    Then the neighbours, and the map from a text to a row.
    """
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in decoder.state_dict().items()}
    if bits != 32:
        table = RowTable.of(tensors.pop("table.weight"), bits)
        tensors |= {"table.rows": table.rows, "table.scales": table.scales}
    if publication.text_map is not None:
        tensors |= publication.text_map.tensors()
    if publication.opinion is not None:
        lists = publication.opinion.neighbourhood.rounded()
        tensors |= {
            "neighbours.items": lists.items,
            "neighbours.levels": lists.levels,
            "neighbours.scales": lists.scales,
        }
    save_file(dict(sorted(tensors.items())), file)


def _write_items(publication: Publication, file: Path) -> None:
    catalog = publication.catalog
    columns = [
        np.arange(1, catalog.items + 1, dtype=np.int32),
        catalog.item_ids,
        catalog.titles,
        catalog.categories,
        publication.counts.astype(np.int64),
    ]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, ITEM_SCHEMA, strict=True)], schema=ITEM_SCHEMA)
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _golden(runtime: Runtime) -> Golden:
    """Requests over the whole range of lengths, with distinct items as long as the catalog has enough."""
    card, rng = runtime.card, np.random.default_rng(0)
    lengths = np.unique(np.geomspace(1, card.length, GOLDEN_REQUESTS).round().astype(int))
    histories = [rng.choice(card.items, length, replace=length > card.items) + 1 for length in lengths]
    served = runtime.serve(histories, GOLDEN_K)
    left = served.codes > 0
    return Golden(
        [history.tolist() for history in histories],
        [codes[kept].tolist() for codes, kept in zip(served.codes, left, strict=True)],
        [scores[kept].tolist() for scores, kept in zip(served.scores, left, strict=True)],
    )


def _refuse_other_scores(decoder: Decoder, graph: ServingGraph, bits: Bits, opinion: Opinion | None) -> None:
    """Compare the file with the decoder that reads and scores the same, dequantized, item table."""
    rng = np.random.default_rng(1)
    longest = decoder.shape.length
    histories = [rng.integers(1, decoder.shape.items + 1, length) for length in (1, min(2, longest), longest)]
    expected = np.stack([_decoder_scores(decoder, history, bits, opinion) for history in histories])
    alone = np.concatenate([graph.all_scores([history]) for history in histories])
    together = graph.all_scores(histories)
    reach = np.ptp(expected, axis=1, keepdims=True)
    for found in (alone, together):
        error = float(np.max(np.abs(found - expected) / np.maximum(reach, np.finfo(np.float32).tiny)))
        if not error <= TOLERANCE[bits]:
            raise ArtifactError(
                f"the exported file's scores are {error:.2%} of their range away from the model's, "
                f"more than {TOLERANCE[bits]:.2%}",
                where=MODEL,
                mend="This CPU or onnxruntime version computes the graph wrongly; nothing was published.",
            )


def _decoder_scores(decoder: Decoder, history: np.ndarray, bits: Bits, opinion: Opinion | None) -> np.ndarray:
    """(N,) of one history, by torch."""
    table = decoder.item_table().detach()
    if bits != 32:
        table = dequantized(table, bits)
    decoder.eval()
    with torch.inference_mode():
        items = torch.from_numpy(history)[None]
        scores = (table[1:] @ decoder.states(items.to(table.device), table)[0, -1])[None]
        if opinion is not None:
            scores = opinion.blended(scores, opinion.heard(items, torch.tensor([0]), torch.tensor([len(history) - 1])))
        return np.asarray(scores[0].cpu().numpy())
