"""A seal: what lies in the vault is encrypted, so that its file without the key does not say who the users are."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES = 64  # AES-256 twice: one key for the synthetic vector, one for the text


class Seal:
    """AES-SIV (RFC 5297) under a key derived from the vault's (HKDF-SHA256), another one for each `what`.

    Without a nonce: the same content of the same token is the same ciphertext, so that a row which is known need not be
    written. It shows how long an id is, and nothing else.
    """

    def __init__(self, key: bytes, what: str) -> None:
        derived = HKDF(SHA256(), _KEY_BYTES, salt=None, info=f"recsys vault: {what}".encode()).derive(key)
        self._cipher = AESSIV(derived)

    def closed(self, content: bytes, of: bytes) -> bytes:
        """The ciphertext, which opens as what belongs to `of` (a token) and to nothing else."""
        return self._cipher.encrypt(content, [of])

    def opened(self, closed: object, of: object) -> bytes | None:
        """The content; None for what was not closed so: damaged, under another key, or something else's."""
        if not isinstance(closed, bytes) or not isinstance(of, bytes):
            return None
        try:
            return self._cipher.decrypt(closed, [of])
        except (InvalidTag, ValueError):  # ValueError: too short to be one
            return None
