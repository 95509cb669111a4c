"""The door: tokens are HMAC-SHA256, and depend on nothing but the key and the id."""

import hmac

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.door import Door
from recsys.errors import ConfigError

KEY = bytes(range(32))


def test_a_token_of_rfc_4231():
    key = b"\xaa" * 131  # test case 6: a key longer than the hash's block
    expected = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    assert Door(key).token("Test Using Larger Than Block-Size Key - Hash Key First") == expected[:32]


@given(st.text(), st.binary(min_size=32, max_size=100))
def test_a_token_is_the_first_half_of_an_hmac(user_id, key):
    assert Door(key).token(user_id) == hmac.digest(key, user_id.encode(), "sha256")[:16].hex()


def test_tokens_of_a_column_are_those_of_its_values():
    ids = ["b", "a", "b", "", "émoji 🛒"]
    assert Door(KEY).tokens(pa.array(ids)).to_pylist() == [Door(KEY).token(i) for i in ids]


def test_another_key_gives_other_tokens():
    assert Door(KEY).token("a") != Door(KEY[::-1]).token("a")


def test_a_short_key_is_refused():
    with pytest.raises(ConfigError, match="has 31 bytes, at least 32 are needed"):
        Door(KEY[:31])


def test_a_user_is_known_by_the_names_that_retired_keys_began():
    first, second, third = (Door(bytes([number]) * 32) for number in (1, 2, 3))
    door = Door(b"\3" * 32, (b"\1" * 32, b"\2" * 32))
    of_first = third.token(second.token(first.token("alice")))
    of_second = third.token(second.token("alice"))
    assert list(door.names("alice")) == [third.token("alice"), of_first, of_second]
    assert door.token("alice") == third.token("alice"), "what a user is called from now on"
    assert list(first.names("alice")) == [first.token("alice")]
