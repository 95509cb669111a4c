"""From refs to the recsys objects they name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import LabelsConfig
from recsys.dataset import Build, Dataset
from recsys.labeller import labeller
from recsys.losses import HIDDEN
from recsys.soft_labels import Labelling, Positions, SoftLabels
from recsys.teacher_scores import TeacherHead
from recsys.teachers import BlendedTeacher, load_teacher
from tasks.adapters.store import Store
from tasks.night import Step
from tasks.refs import DatasetRef, LabelsRef, TeacherRef


def open_dataset(store: Store, ref: DatasetRef) -> Dataset:
    """Coded histories, catalog and split."""
    return Dataset.load(store.open(ref.step, ref.digest))


def open_build(store: Store, digest: str) -> Build:
    """The counts and cuts of a dataset, without its histories."""
    document = json.loads((store.open("build", digest) / "build.json").read_text())
    return Build.from_json(document["build"])


def open_item_ids(store: Store, digest: str) -> pa.ChunkedArray:
    """(N,) ids of a dataset's items by code - 1, without their texts."""
    return pq.read_table(store.open("build", digest) / "catalog.parquet", columns=["item_id"])["item_id"]


def open_teacher(store: Store, ref: TeacherRef) -> BlendedTeacher:
    """A teacher of either kind, with its neighbours."""
    return load_teacher(store.open(ref.step, ref.digest))


def labelling_of(teacher: TeacherRef, dataset: Dataset, config: LabelsConfig) -> Labelling:
    """What all labels of a teacher share."""
    return Labelling.of(teacher.digest, teacher.items, dataset.catalog.item_ids, config)


def open_labels(at: Step, dataset: Dataset, labels: LabelsRef) -> SoftLabels:
    """The labels of a dataset's training positions, joined from their segments; with states where the loss wants them."""
    config, head = at.night.config, None
    if config.search.loss == HIDDEN:
        labelled = labeller(open_teacher(at.store, labels.teacher), config.labels.teacher_bits)
        head = TeacherHead.of(labelled.model, labelled.opinion)
    return SoftLabels.open(
        [at.store.open(segment.step, segment.digest) for segment in labels.segments],
        Positions.of(dataset.histories, config.data.history_length),
        labelling_of(labels.teacher, dataset, config.labels),
        head,
    )
