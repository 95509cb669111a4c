"""MLflow's packaging of published files: data, an `MLmodel` that names our loader, and never code or pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Example:
    """The model's signature by example: a request and its answer, column by column, and parameters."""

    inputs: Mapping[str, Sequence[Any]]
    outputs: Mapping[str, Sequence[Any]]
    params: Mapping[str, Any]


ANSWERS = Example(
    inputs={"history": [["an item id", "a later one"]]},
    outputs={"item_ids": [["an item id"]], "scores": [[1.0]], "sources": [["model"]]},
    params={"k": 10, "explain": False},
)
"""What a student is asked and answers; with `explain` there is a column `reasons` too."""


def save(package: Path, folder: Path, loader_module: str, example: Example | None) -> None:
    """Writes the package of `folder`. Requirements are named, or MLflow would import everything to infer them."""
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import infer_signature

    signature = shown = None
    if example is not None:
        inputs, params = pd.DataFrame(dict(example.inputs)), dict(example.params)
        signature = infer_signature(inputs, pd.DataFrame(dict(example.outputs)), params)
        shown = (inputs, params)
    pyfunc.save_model(
        path=str(package),
        loader_module=loader_module,
        data_path=str(folder),
        signature=signature,
        input_example=shown,
        pip_requirements=[f"{name}=={installed(name)}" for name in ("recsys-factory", "mlflow")],
    )
