"""The door: users leave it as keyed tokens, and nothing behind it ever sees a raw user id."""

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import ConfigError

TOKEN_LENGTH = 32
"""Hex characters of a token: 16 bytes, so that a billion users collide with probability 1e-21."""

_SHORTEST_KEY = 32
_BLOCK_BYTES = 64  # of SHA-256


class Door:
    """Turns user ids into tokens: the first 16 bytes of HMAC-SHA256(key, user id in UTF-8), in hex.

    Keyed, because plain hashes of ids are reversed by trying all ids. Tokens remain personal data.

    When a key is retired, what it was the token of gets a token itself: of a user who was forgotten nothing else is known.
    """

    def __init__(self, key: bytes, retired: Sequence[bytes] = ()) -> None:
        """Raises ConfigError for a key shorter than 32 bytes."""
        if len(key) < _SHORTEST_KEY:
            raise ConfigError(
                f"the key of the user tokens has {len(key)} bytes, at least {_SHORTEST_KEY} are needed",
                mend="Make one with: head -c 32 /dev/urandom > KEY_FILE.",
            )
        # RFC 2104 spelled out: copying hashes that have read the padded key halves the time of hmac.digest.
        block = hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key
        block = block.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        self._retired = tuple(Door(old) for old in retired)  # oldest first

    def token(self, user_id: str) -> str:
        """The token of one user, 32 hex characters."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(user_id.encode())
        outer.update(inner.digest())
        return outer.hexdigest()[:TOKEN_LENGTH]

    def names(self, user_id: str) -> Iterator[str]:
        """Every token that the list of the forgotten may have of a user: today's, then those that began under a retired key."""
        yield self.token(user_id)
        for number in range(len(self._retired)):
            name = user_id
            for door in (*self._retired[number:], self):
                name = door.token(name)
            yield name

    def tokens(self, user_ids: pa.Array) -> pa.Array:
        """The tokens of (n,) user ids without nulls, as (n,) strings; equal ids are hashed once."""
        encoded = pc.dictionary_encode(user_ids)
        distinct = pa.array([self.token(user_id) for user_id in encoded.dictionary.to_pylist()], pa.string())
        return distinct.take(encoded.indices)
