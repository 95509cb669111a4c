"""What of a machine is in the keys of training, and by how many processes a teacher is trained."""

from dataclasses import replace

import pytest
import torch

from recsys.teacher import fit_teacher
from tasks import computing
from tasks.adapters.settings import Settings


@pytest.fixture
def settings(tmp_path):
    before = torch.get_num_threads()  # `use` gives torch others
    yield replace(Settings.from_environment(tmp_path), threads=1, ranks=1, hosts=1, rendezvous="")
    torch.set_num_threads(before)


def test_one_process_has_the_key_it_always_had_and_several_have_another(settings):
    assert computing.use_by_ranks(settings) == computing.use(settings)
    keys = [computing.use_by_ranks(replace(settings, ranks=ranks)) for ranks in (1, 2, 4)]
    assert len({str(key) for key in keys}) == 3


def test_ranks_of_one_host_share_its_threads(settings):
    four = replace(settings, threads=4, ranks=4)
    assert computing.use_by_ranks(four)["rank_threads"] == "1"
    two_hosts = replace(four, hosts=2, rendezvous="first:29400")
    assert computing.use_by_ranks(two_hosts)["rank_threads"] == "2"
    assert computing.by_ranks(two_hosts, fit_teacher).func.__self__.threads == 2


def test_one_process_trains_as_ever(settings):
    assert computing.by_ranks(settings, fit_teacher) is fit_teacher
