"""What a published model knows of its items, and which of them a request may be answered with. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.artifact import ITEMS, MEND
from recsys.errors import ArtifactError, DataError
from recsys.item_ids import CodeOf, ItemIds

NO_CODES = np.empty(0, np.int32)
BETWEEN = "|"
"""What stands between the categories of an item that is in several: "Comedy|Drama"."""


@dataclass(frozen=True)
class Filter:
    """Which items an answer may hold, by code; unknown codes are passed over."""

    allowed: np.ndarray | None = None  # (A,) int32; None: every item
    denied: np.ndarray = field(default_factory=lambda: NO_CODES)  # (D,) int32, taken from the allowed ones


@dataclass(frozen=True)
class ItemColumns:
    """What the runtime knows of the items; item code c is place c - 1."""

    item_ids: Sequence[str]
    counts: np.ndarray  # (N,) int64 training events
    titles: pa.Array | None = None  # (N,) strings, null where there is none
    categories: pa.Array | None = None  # likewise; one text, or several with BETWEEN between them

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read items.parquet; ArtifactError when codes are not 1 to N or an id is missing or twice there."""
        try:
            file = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True)
            # One thread: the others' arenas of memory outlive the one file that is read.
            table = file.read(columns=["code", "item_id", "count", "title", "category"], use_threads=False)
            # Not read_table and to_numpy: those import pandas wherever it is installed.
            codes, counts = (np.from_dlpack(table[name].combine_chunks()) for name in ("code", "count"))
            item_ids, titles, categories = (table[name].combine_chunks() for name in ("item_id", "title", "category"))
        except (pa.ArrowException, KeyError, OSError) as reason:
            raise ArtifactError(f"{ITEMS} cannot be read", mend=MEND) from reason
        if not np.array_equal(codes, np.arange(1, len(codes) + 1)):
            raise ArtifactError(f"{ITEMS} does not hold the codes 1 to {len(codes)} in order", mend=MEND)
        if item_ids.type != pa.string():
            raise ArtifactError(f"{ITEMS} has item ids that are no texts", mend=MEND)
        found = None if item_ids.null_count else cls(ItemIds(item_ids), counts, titles, categories)
        if found is None or found.code_of.twice:
            raise ArtifactError(f"{ITEMS} has an item without an id or an id twice", mend=MEND)
        return found

    def followed_by(self, more: Self) -> Self:
        """These items and, with the codes after theirs, `more`. DataError where an id is there already."""
        twice = [item_id for item_id in more.item_ids if item_id in self.code_of]
        if twice:
            raise DataError(f"the item {min(twice)!r} is in the model already", mend="Add only items that are new.")
        columns = ((getattr(each, name) for each in (self, more)) for name in ("titles", "categories"))
        titles, categories = (
            pa.concat_arrays(
                [
                    pa.nulls(len(each.item_ids), pa.string()) if part is None else part.cast(pa.string())
                    for each, part in zip((self, more), parts, strict=True)
                ]
            )
            for parts in columns
        )
        item_ids = ItemIds.of([*self.item_ids, *more.item_ids])
        return type(self)(item_ids, np.concatenate([self.counts, more.counts]), titles, categories)

    @cached_property
    def code_of(self) -> CodeOf:
        """Codes by item id."""
        return CodeOf(ItemIds.of(self.item_ids))

    def codes(self, item_ids: Sequence[str]) -> np.ndarray:
        """Item ids as codes, in their order; ids the model does not know are left out."""
        return self.code_of.codes(item_ids)

    def title(self, code: int) -> str | None:
        """Of one item; None where there is none."""
        title: str | None = None if self.titles is None else self.titles[code - 1].as_py()
        return title

    @cached_property
    def codes_of_category(self) -> Mapping[str, np.ndarray]:
        """Codes by category, ascending. "Comedy|Drama" is in that category and in each of its parts."""
        if self.categories is None:
            return {}
        encoded = self.categories.fill_null("").dictionary_encode()  # imports pyarrow.compute: 10 MB for whoever asks
        texts = encoded.dictionary.to_pylist()
        places = np.from_dlpack(encoded.indices)
        order = np.argsort(places, kind="stable")
        groups = np.split((order + 1).astype(np.int32), np.cumsum(np.bincount(places, minlength=len(texts)))[:-1])
        found: dict[str, list[np.ndarray]] = {}
        for text, codes in zip(texts, groups, strict=True):
            for name in {text, *(part.strip() for part in text.split(BETWEEN))} - {""}:
                found.setdefault(name, []).append(codes)
        return {name: np.sort(np.concatenate(lists)) for name, lists in found.items()}

    def filter(
        self, allow: Sequence[str] | None = None, exclude: Sequence[str] = (), categories: Sequence[str] | None = None
    ) -> Filter:
        """Of item ids and names of categories. None: no such limit; an empty list: nothing passes it.

        An item must be allowed and in one of the categories. Item ids that the model does not know are passed over.
        DataError for a category that it does not know.
        """
        allowed = None if allow is None else self.codes(allow)
        if categories is not None:
            within = self._in_any(categories)
            allowed = within if allowed is None else np.intersect1d(allowed, within)
        return Filter(allowed, self.codes(exclude))

    def _in_any(self, categories: Iterable[str]) -> np.ndarray:
        chosen = [NO_CODES]
        for name in categories:
            if name not in self.codes_of_category:
                known = "there are none" if not self.codes_of_category else f"there are {len(self.codes_of_category):,}"
                raise DataError(f"the model knows no category {name!r}; {known}", mend="Name one as the items do.")
            chosen.append(self.codes_of_category[name])
        return np.unique(np.concatenate(chosen))
