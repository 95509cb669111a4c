"""Published files: what is not exactly what the manifest names is refused by name, before anything is parsed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from scipy.sparse import csr_array

from recsys.artifact import CARD, CONTENTS, MANIFEST, WEIGHTS, Card, Manifest, verify, write_manifest
from recsys.decoder import Decoder, DecoderShape
from recsys.errors import ArtifactError
from recsys.export import Publication, export
from recsys.graph import serving_graph
from recsys.histories import Catalog
from recsys.neighbourhood import Neighbourhood, Opinion
from recsys.quantize import RowTable
from recsys.runtime import TOLERANCE, Runtime
from recsys.sequence_model import Scorer
from recsys.serving_graph import ServingGraph

ITEMS = 20
SHAPE = DecoderShape.of(ITEMS, 16, 2, 8)


def publication(items: int = ITEMS) -> Publication:
    ids = [f"item-{code}" for code in range(1, items + 1)]
    catalog = Catalog(ids, [None, *ids[1:]], ["tools"] * items, [None] * items)
    return Publication(
        catalog, np.arange(items, dtype=np.int64), "exclude", {"student": "ab" * 32, "dataset": "cd" * 32}
    )


def decoder(shape: DecoderShape = SHAPE) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(shape, 0.0).eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "artifact"
    export(decoder(), publication(), 8, folder)
    return folder


@pytest.fixture
def artifact(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "artifact")


def test_a_whole_artifact_is_verified(artifact: Path) -> None:
    manifest = verify(artifact)
    assert tuple(manifest.files) == CONTENTS
    assert manifest.model_bytes == (artifact / "model.onnx").stat().st_size


def test_the_same_model_gives_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    manifest = export(decoder(), publication(), 8, tmp_path / "again")
    assert manifest == verify(artifact)
    for name in (*CONTENTS, MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (artifact / name).read_bytes()


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_changed_byte_is_refused(artifact: Path, name: str, place: float) -> None:
    raw = bytearray((artifact / name).read_bytes())
    raw[int(place * len(raw)) if place > 0 else int(place)] ^= 1
    (artifact / name).write_bytes(raw)
    # A byte of the manifest may be one of a digest: then the file it stands for is the one that does not fit.
    with pytest.raises(
        ArtifactError, match=r"is not the file its manifest names|manifest\.json (is damaged|has format)"
    ) as error:
        verify(artifact)
    assert name in str(error.value) or name == MANIFEST


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_a_missing_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        verify(artifact)


@pytest.mark.parametrize("name", ["model.pkl", "loader.py", "model.onnx.data", ".hidden", "README.md"])
def test_an_extra_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ArtifactError, match=f"{name} does not belong to an artifact"):
        verify(artifact)


def test_a_folder_inside_is_refused(artifact: Path) -> None:
    (artifact / "code").mkdir()
    with pytest.raises(ArtifactError, match="code does not belong"):
        verify(artifact)


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST])
def test_a_link_is_refused_even_to_the_right_bytes(artifact: Path, tmp_path: Path, name: str) -> None:
    (artifact / name).rename(tmp_path / name)
    (artifact / name).symlink_to(tmp_path / name)
    with pytest.raises(ArtifactError, match=f"{name} is a link"):
        verify(artifact)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no artifact"):
        verify(tmp_path / "nowhere")


def test_a_manifest_of_another_format_says_so(artifact: Path) -> None:
    value = json.loads((artifact / MANIFEST).read_bytes())
    (artifact / MANIFEST).write_text(json.dumps({**value, "format": 2}, sort_keys=True, indent=1))
    with pytest.raises(ArtifactError, match="has format 2, this version reads 1"):
        verify(artifact)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"format": 1, "files": {}}',
        '{"format": 1, "files": {"../x": {"sha256": "", "bytes": 0}}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(artifact: Path, text: str) -> None:
    (artifact / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        verify(artifact)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_another_kind_is_refused_though_its_manifest_fits(artifact: Path, name: str) -> None:
    (artifact / name).write_bytes(b"\x80\x04\x95 a pickle")
    with pytest.raises(ArtifactError, match=f"{name} is not the kind of file its name says"):
        write_manifest(artifact)


def test_a_model_whose_weights_lie_elsewhere_is_refused(artifact: Path, tmp_path: Path) -> None:
    model = onnx.load_from_string(serving_graph(decoder(), 32))
    onnx.save_model(model, tmp_path / "model.onnx", save_as_external_data=True, location="elsewhere", size_threshold=0)
    shutil.copy(tmp_path / "model.onnx", artifact / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the kind of file"):
        write_manifest(artifact)


def test_a_file_changed_after_the_check_is_not_read(artifact: Path) -> None:
    manifest = verify(artifact)
    (artifact / "card.json").write_bytes((artifact / "card.json").read_bytes().replace(b"exclude", b"allow  "))
    for look in (manifest.read, manifest.check):
        with pytest.raises(ArtifactError, match=r"card\.json is not the file"):
            look(artifact, "card.json")
    manifest.check(artifact, "model.onnx")


def test_a_model_changed_while_it_was_loaded_is_not_served(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(model: Path, threads: int) -> ServingGraph:
        model.write_bytes(serving_graph(decoder(), 32))
        return ServingGraph(model, threads)

    monkeypatch.setattr("recsys.runtime.ServingGraph", changing)
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file"):
        Runtime.open(artifact)


def test_loading_holds_no_bytes_of_the_model(artifact: Path) -> None:
    graph = Runtime.open(artifact).graph
    assert not any(isinstance(value, bytes) for value in vars(graph.session).values())


def test_the_digest_stands_for_every_file(artifact: Path) -> None:
    before = verify(artifact).digest
    card = json.loads((artifact / "card.json").read_bytes())
    (artifact / "card.json").write_bytes(json.dumps({**card, "repeats": "allow"}, sort_keys=True, indent=1).encode())
    assert write_manifest(artifact).digest != before
    assert isinstance(verify(artifact), Manifest)


def test_the_card_says_what_the_model_is(artifact: Path) -> None:
    raw = (artifact / "card.json").read_bytes()
    assert json.loads(raw) == {
        "format": 1, "items": 20, "length": 8, "width": 16, "blocks": 2, "heads": [1, 1], "ffn": [64, 64], "bits": 8,
        "repeats": "exclude", "lineage": {"student": "ab" * 32, "dataset": "cd" * 32},
        "neighbours": 0, "newest": 0, "neighbours_weight": 0.0, "text": {},
    }  # fmt: skip
    assert Card.from_bytes(raw).to_bytes() == raw
    with pytest.raises(ArtifactError, match="is not a card of format 1"):
        Card.from_bytes(raw.replace(b'"format": 1', b'"format": 7'))
    with pytest.raises(ArtifactError, match="is not a card of format 1"):
        Card.from_bytes(b'{"format": 1, "blocks": 1}')


def test_items_and_weights_can_be_read_without_us(artifact: Path) -> None:
    items = pq.read_table(artifact / "items.parquet")
    assert items.column_names == ["code", "item_id", "title", "category", "count"]
    assert items.slice(1, 1).to_pylist() == [
        {"code": 2, "item_id": "item-2", "title": "item-2", "category": "tools", "count": 1}
    ]
    weights = load_file(artifact / "weights.safetensors")
    table = RowTable.of(decoder().item_table().detach().numpy(), 8)
    assert np.array_equal(weights["table.rows"], table.rows)
    assert np.array_equal(weights["table.scales"], table.scales)
    assert "table.weight" not in weights
    assert np.array_equal(weights["blocks.1.up.weight"], decoder().blocks[1].up.weight.detach().numpy())


def test_a_catalog_of_another_size_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the model knows 20 items, the catalog has 21"):
        export(decoder(), publication(21), 8, tmp_path / "out")


@pytest.mark.parametrize("bits", [8, 32])
def test_a_file_that_scores_otherwise_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    changed = decoder()
    changed.blocks[1].down.weight.data[0] += 0.5  # what the graph is built from is not what torch computes with
    monkeypatch.setattr("recsys.export.serving_graph", lambda _, bits, opinion: serving_graph(changed, bits, opinion))
    with pytest.raises(ArtifactError, match="of their range away from the model's"):
        export(decoder(), publication(), bits, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    broken = decoder()
    broken.norm.bias.data[0] = np.nan
    with pytest.raises(ArtifactError, match="nan"):
        export(broken, publication(), 32, tmp_path / "out")


def opinion() -> Opinion:
    rows = np.random.default_rng(0).random((ITEMS, ITEMS), np.float32)
    return Opinion(Neighbourhood(csr_array(np.where(rows > 0.8, rows, 0)), 5).as_rounded(), 0.5)


def test_neighbours_are_published_with_the_model(tmp_path: Path) -> None:
    with_them = replace(publication(), opinion=opinion())
    export(decoder(), with_them, 8, tmp_path / "out")
    lists, card = with_them.opinion.neighbourhood.rounded(), Card.from_bytes((tmp_path / "out" / CARD).read_bytes())
    assert (card.neighbours, card.newest, card.neighbours_weight) == (lists.items.shape[1], 5, 0.5)
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert np.array_equal(weights["neighbours.items"], lists.items)
    assert np.array_equal(weights["neighbours.levels"], lists.levels)
    Runtime.open(tmp_path / "out").check_golden()
    history = np.array([3, 4, 9], np.int32)
    blended = Scorer(decoder(), 8, "student", opinion=with_them.opinion).scores([history])
    found = Runtime.open(tmp_path / "out").scores([history])
    assert np.abs(found - blended).max() <= TOLERANCE[8] * np.ptp(blended)


def test_other_neighbours_than_the_model_was_judged_with_are_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(opinion(), weight=0.3)
    monkeypatch.setattr("recsys.export.serving_graph", lambda model, bits, _: serving_graph(model, bits, other))
    with pytest.raises(ArtifactError, match="of their range away from the model's"):
        export(decoder(), replace(publication(), opinion=opinion()), 8, tmp_path / "out")
