"""A step whose code changed says so: its VERSION goes up, or the change is shown to leave every bit as it was.

The store finds results by recipe, and a recipe names the step's VERSION. `versions.json` keeps, for each step, its VERSION and
a digest of the code its results depend on: the syntax trees, docstrings left out, of the task's file and of all of `recsys`
that it imports. When this test fails, either raise VERSION in the task (results change) or show that they are equal to the
bit; then write the file anew:  python tests/test_versions.py
"""

import ast
import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name("versions.json")
STEPS = ("validate_events", "build_dataset", "train_teacher", "make_soft_labels", "distill_student",
         "compress_student", "evaluate_models", "judge")  # fmt: skip


def closure(module: str) -> list[str]:
    """The task's module and every module of recsys that it imports, directly or not, in order of name."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "recsys":
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(seen)


def digest(module: str) -> str:
    """Of the syntax trees, so that neither a comment nor a docstring nor the layout counts."""
    found = hashlib.sha256()
    for name in closure(module):
        tree = ast.parse((ROOT / (name.replace(".", "/") + ".py")).read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                body.pop(0)
        found.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return found.hexdigest()


def present() -> dict[str, dict[str, object]]:
    versions = {}
    for step in STEPS:
        text = (ROOT / "tasks" / f"{step}.py").read_text()
        match = re.search(r"^VERSION = (\d+)$", text, re.MULTILINE)
        assert match, f"tasks/{step}.py has no VERSION"
        versions[step] = {"version": int(match[1]), "code": digest(f"tasks.{step}")}
    return versions


@pytest.mark.parametrize("step", STEPS)
def test_changed_code_has_a_new_version(step):
    kept, now = json.loads(KEPT.read_text())[step], present()[step]
    assert now == kept, (
        f"the code behind {step} changed: raise VERSION in tasks/{step}.py unless its results are equal to the bit, "
        "then run python tests/test_versions.py"
    )


def test_the_closure_reaches_what_the_results_depend_on():
    assert {"recsys.training", "recsys.decoder", "recsys.windows"} <= set(closure("tasks.train_teacher"))
    assert "recsys.runtime" in closure("tasks.evaluate_models")


if __name__ == "__main__":
    KEPT.write_text(json.dumps(present(), indent=1, sort_keys=True) + "\n")
