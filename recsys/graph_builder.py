"""An ONNX graph as it is built: nodes and initializers, and the same file for the same calls."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from recsys.quantize import packed

OPSET = 20  # the first with Gelu
IR_VERSION = 10


class GraphBuilder:
    """Nodes and initializers as they are added. Names come from what was added before, so they never vary."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.short: set[str] = set()  # of them those that are bfloat16 in the file

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and give the output's name."""
        return self.ops(kind, *inputs, names=[name or f"{kind}_{len(self.nodes)}"], **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: list[str], **attributes: Any) -> list[str]:
        """Add a node with the outputs `names`; it has no name of its own, which would be in the file twice."""
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, name: str, value: np.ndarray) -> str:
        """Add an initializer under its own name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def scales(self, name: str, value: np.ndarray) -> str:
        """Add float32 numbers of sixteen bits, which the file holds in two bytes each; a request finds floats."""
        self.short.add(self.weight(name, value))
        return self.op("Cast", name, to=TensorProto.FLOAT)

    def fours(self, name: str, rows: np.ndarray) -> str:
        """Add numbers below 16, (R, C) uint8, which the file holds two to a byte; onnxruntime unpacks them once, on load."""
        both = self.weight(name, packed(rows))
        even = self.op("BitwiseAnd", both, self.number(15, np.uint8))
        odd = self.op("BitShift", both, self.number(4, np.uint8), direction="RIGHT")
        pairs = self.op("Concat", *(self.op("Unsqueeze", half, self.ints(-1)) for half in (even, odd)), axis=-1)
        in_order = self.op("Reshape", pairs, self.ints(len(rows), -1))
        return self.op("Slice", in_order, self.ints(0), self.ints(rows.shape[1]), self.ints(1))

    def ints(self, *values: int) -> str:
        """An int64 vector, kept once however often it is asked for."""
        name = "ints_" + "_".join(str(v) for v in values).replace("-", "minus")
        return self.weight(name, np.array(values, np.int64))

    def number(self, value: float | np.floating, kind: type = np.float32) -> str:
        """A scalar, kept once however often it is asked for."""
        return self.weight(f"{np.dtype(kind).name}_{value}", np.array(value, kind))

    def serialized(self) -> bytes:
        """The checked model; initializers by name, no time, path or version of a tool in it."""
        whole = TensorProto.INT64
        inputs = {"history": ["B", "L"], "length": ["B"], "exclude": ["B", "X"], "k": [1]}
        outputs = {"codes": whole, **dict.fromkeys(("scores", "all_scores", "state"), TensorProto.FLOAT)}
        graph = helper.make_graph(
            self.nodes,
            "recommender",
            [helper.make_tensor_value_info(name, whole, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(n, kind, ["B", f"{n}_columns"]) for n, kind in outputs.items()],
            [self._tensor(name) for name in sorted(self.constants)],
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="recsys", opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))

    def _tensor(self, name: str) -> onnx.TensorProto:
        value = self.constants[name]
        if name not in self.short:
            return numpy_helper.from_array(value, name)
        halves = (value.view(np.uint32) >> 16).astype("<u2")  # the other sixteen bits are zero
        return helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, halves.tobytes(), raw=True)
