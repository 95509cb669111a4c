"""One of the processes that train a teacher: started by torch's launcher as `python -m recsys.rank FOLDER`."""

import json
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recsys.errors import RecsysError
from recsys.fleet import end_with_parent, taken_over
from recsys.ranks import Ranks, Together
from recsys.torchrun import Place
from recsys.training import Epoch, ignore


def train(place: Place, ranks: Ranks) -> None:
    """Do the work that was handed over, with the other ranks; the first tells of it."""
    fit, arguments, options, threads = taken_over(place.work)
    torch.set_num_threads(threads)
    epochs: list[dict[str, Any]] = []

    def tell(epoch: Epoch) -> None:
        epochs.append(asdict(epoch))
        place.write(place.epochs, json.dumps(epochs).encode())

    on_epoch = ignore if ranks.rank else tell
    try:
        fit(*arguments, on_epoch=on_epoch, enough=place.enough.exists, ranks=ranks, **options)
    except RecsysError as error:
        place.write(place.error, pickle.dumps(error))
        raise


if __name__ == "__main__":
    end_with_parent()
    with Together.joined() as among:
        train(Place(Path(sys.argv[1])), among)
