"""What several tests of the library ask for."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Equal to the bit holds for one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
