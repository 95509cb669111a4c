"""Two homes share a store: its key is changed in one, and the other follows; what names users by the old one is nowhere."""

import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.door import Door
from tasks.adapters.vault import Vault, forgotten
from tests.faults.night import objects_of
from tests.flows.test_forget import LEARNT, found_in
from tests.flows.test_shared_forgetting import Shared
from tests.flows.test_shared_forgetting import shared as shared

NAMELESS = ("teach", "distil", "compress")
"""Steps whose objects hold weights alone, and no token."""


def nameless(store) -> set[str]:
    """Step and digest of what was learnt."""
    return {f"{name.split()[0]} {digest}" for name, digest in objects_of(store).items() if name.split()[0] in NAMELESS}


def tokens(users: pa.Array, key: bytes) -> set[str]:
    return {Door(key).token(user) for user in users.to_pylist()}


def test_the_key_of_a_shared_store_is_changed_in_one_home_and_the_other_follows(shared: Shared, tmp_path):
    assert set(NAMELESS) <= {*LEARNT}
    users = pc.unique(pq.read_table(shared.shop.folder / "events.parquet")["user_id"])
    old, gone = shared.key("one").read_bytes(), users[0].as_py()
    before = tokens(users, old)
    shared.night("two")
    assert "NO CHANGE" in shared.night("one")
    made = nameless(shared.bucket(tmp_path / "first") / "store")
    assert found_in(tmp_path / "first", before), "the search finds them"

    shared.recsys("one", "forget", gone, "--yes")  # which home two has not heard of when the key changes
    said = shared.recsys("one", "rotate-key", "--reason", "a laptop was stolen", "--yes")
    assert "Every other home of the store has to follow" in said
    new = shared.key("one").read_bytes()
    assert new != old
    assert found_in(shared.bucket(tmp_path / "second"), before) == set()
    assert {each.name for each in (tmp_path / "second" / "store").iterdir()} == {"era.json", "heads", "era-2"}
    shared.night("one")
    assert found_in(tmp_path / "one", before) == set()

    assert "another key than the shared store" in shared.night("two", code=2)
    assert "the new one is not here" in shared.recsys("two", "rotate-key", "--reason", "follow", "--yes", code=2)
    assert Vault(tmp_path / "two" / "vault", shared.key("two")).user_ids([Door(old).token(gone)]), (
        "it knows the user still"
    )
    shutil.copy(shared.key("one"), tmp_path / "two.key.next")
    followed = shared.recsys("two", "rotate-key", "--reason", "follow", "--yes")
    assert "The store of all homes has that key now" in followed
    assert shared.key("two").read_bytes() == new
    assert not (tmp_path / "two.key.next").exists()
    assert "NO CHANGE" in shared.night("two")
    assert found_in(tmp_path / "two", {*before, gone}) == set()

    shutil.copy(shared.key("one"), tmp_path / "three.key")  # a home that begins later, and has never seen the old key
    assert "NO CHANGE" in shared.night("three")
    for host in ("one", "two", "three"):
        vault = Vault(tmp_path / host / "vault", shared.key(host))
        assert len(forgotten(vault.folder)) == 1
        known = [user for user in users.to_pylist() if forgotten(vault.folder).keys() & set(vault.door.names(user))]
        assert known == [gone], host
    last = shared.bucket(tmp_path / "last")
    assert found_in(last, before) == set()
    assert made.isdisjoint(nameless(last / "store" / "era-2")), "they have learnt without the forgotten one"
