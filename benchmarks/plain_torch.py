"""A student as a plain torch model in MLflow, in float32: what `recsys serve` is held against (benchmarks/serving.py)."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.types import ParamSchema, ParamSpec

from recsys.decoder import DecoderShape
from recsys.student import Student

LENGTH = 50


def save_plain(folder: Path, items: int, width: int) -> Path:
    """An MLflow model folder whose code is this file; item ids are `item-0` and so on."""
    student = Student.untrained(DecoderShape.of(items, width, 1, LENGTH), 0.0, seed=1).eval()
    student.save(folder.with_name("student"))
    params = ParamSchema([ParamSpec("k", "integer", 10)])
    example = pd.DataFrame({"history": [["item-1"]]})
    signature = mlflow.models.infer_signature(example, [["item-1"]])
    signature.params = params
    mlflow.pyfunc.save_model(
        str(folder), python_model=__file__, artifacts={"student": str(folder.with_name("student"))},
        signature=signature, pip_requirements=["torch"],
    )  # fmt: skip
    return folder


class PlainTorch(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """One encode, one product, one topk."""

    def load_context(self, context: Any) -> None:
        """Once a process."""
        torch.set_num_threads(1)
        self.student = Student.load(Path(context.artifacts["student"])).eval()
        self.table = self.student.item_table().detach()
        self.codes = {f"item-{item}": item + 1 for item in range(len(self.table) - 1)}
        self.names = ["", *self.codes]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[list[str]]:
        """A list of item ids a row."""
        k, answers = (params or {}).get("k", 10), []
        with torch.inference_mode():
            for history in model_input["history"]:
                read = torch.tensor([[self.codes[name] for name in history if name in self.codes][-LENGTH:]])
                scores = self.student.states(read, self.table)[:, -1] @ self.table.T
                scores.scatter_(1, read, -torch.inf)[:, 0] = -torch.inf
                answers.append([self.names[code] for code in scores.topk(k).indices[0].tolist()])
        return answers


set_model(PlainTorch())
