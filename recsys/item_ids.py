"""The item ids of a published model and their codes, in buffers: N Python strings and a dict take seven times as much."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pyarrow as pa


class ItemIds(Sequence[str]):
    """N texts; the id of item code c is at place c - 1."""

    def __init__(self, texts: pa.Array) -> None:
        """Copies `texts` (N,), of type string and without a null."""
        _, offsets, characters = texts.buffers()
        self.offsets = np.frombuffer(offsets, np.int32, len(texts) + 1, 4 * texts.offset).copy().data
        self.characters = characters.to_pybytes() if characters else b""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "ItemIds":
        """Of Python strings, if they are not ItemIds already."""
        return texts if isinstance(texts, ItemIds) else cls(pa.array(texts, pa.string()))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if place < 0:
            place = range(len(self))[place]
        return self.characters[self.offsets[place] : self.offsets[place + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for text in self.encoded())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __getstate__(self) -> tuple[np.ndarray, bytes]:
        """A view of memory cannot be pickled, an array can."""
        return np.asarray(self.offsets), self.characters

    def __setstate__(self, state: tuple[np.ndarray, bytes]) -> None:
        self.offsets, self.characters = state[0].data, state[1]

    def encoded_at(self, place: int) -> bytes:
        """The text at a place from 0 in UTF-8."""
        return self.characters[self.offsets[place] : self.offsets[place + 1]]

    def encoded(self) -> Iterator[bytes]:
        """The texts in UTF-8, in order."""
        return (self.characters[start:end] for start, end in pairwise(self.offsets))


class CodeOf(Mapping[str, int]):
    """Codes by item id: looked for by hash among the sorted ones, and then compared as text, so that it is exact."""

    def __init__(self, item_ids: ItemIds) -> None:
        self.item_ids = item_ids
        hashes = np.fromiter(map(hash, item_ids.encoded()), np.int64, len(item_ids))
        self._places = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._places]
        self._sorted = self._hashes.data  # for bisect, which is slow on an array
        again = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        shared = self._places[np.union1d(again, again + 1)].tolist()
        self._others = {item_ids.encoded_at(place): place + 1 for place in shared}  # a hash finds the first of its ids
        self.twice = len(self._others) < len(shared)
        """Whether an id stands there more than once."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process: there texts have other hashes."""
        return CodeOf, (self.item_ids,)

    def codes(self, item_ids: Sequence[str]) -> np.ndarray:
        """(B,) int32, in the order asked; what is not there, or no text, is left out."""
        try:
            asked = [each.encode() for each in item_ids]
        except (AttributeError, UnicodeEncodeError):
            asked = [_encoded(each) for each in item_ids if isinstance(each, str)]
        if not len(self):
            return np.empty(0, np.int32)
        hashes = np.fromiter(map(hash, asked), np.int64, len(asked))
        places = self._places[np.minimum(self._hashes.searchsorted(hashes), len(self) - 1)].tolist()
        characters, at, others = self.item_ids.characters, self.item_ids.offsets, self._others
        found = [  # as _code, which is not called: every request asks fifty times
            place + 1 if characters[at[place] : at[place + 1]] == text else others.get(text, 0)
            for text, place in zip(asked, places, strict=True)
        ]
        return np.array([code for code in found if code], np.int32)

    def __getitem__(self, item_id: str) -> int:
        if isinstance(item_id, str):
            text = _encoded(item_id)
            at = bisect_left(self._sorted, hash(text))
            code = self._code(text, int(self._places[at])) if at < len(self) else 0
            if code:
                return code
        raise KeyError(item_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    def _code(self, text: bytes, place: int) -> int:
        """Of `text`, whose hash is that of the item at `place` or of no item; 0 where it is not there."""
        return place + 1 if self.item_ids.encoded_at(place) == text else self._others.get(text, 0)


def _encoded(item_id: str) -> bytes:
    """In UTF-8. Half a surrogate pair, which JSON can hold, is in no id: it is not found, rather than an error."""
    return item_id.encode(errors="surrogatepass")
