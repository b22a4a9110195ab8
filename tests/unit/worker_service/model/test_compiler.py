"""The compiler is imported when something compiles, and is then as if it had been there all along."""

import json
import subprocess
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler

from hotslot.errors import CompilerMissingError
from worker_service.model import code_key, compiler
from worker_service.model.cpu import library
from worker_service.model.shared_code import CodeKey

LEAN = """
import json, sys
from worker_service.model.lean_imports import lean_imports
with lean_imports():
    import worker_service.model.loading
import torch
from worker_service.model import compiler
"""
"""As a worker's process imports what loads models."""


def apart(program: str) -> Any:
    """What a program prints, in a process of its own: the compiler is here already."""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_was_wanted_of_the_compiler_is_done_when_anything_imports_it() -> None:
    program = """
acts = []
compiler.once_imported("settings", lambda: acts.append("first"))
compiler.once_imported("settings", lambda: acts.append("second"))
compiler.fail_on_recompile()
before = [compiler.is_imported(), compiler.num_graphs(), *acts]
compiled = torch.compile(lambda x: x + 1, backend="eager")
try:
    compiled(torch.ones(1))
    outcome = "compiled"
except RuntimeError as exc:
    outcome = str(exc)
with compiler.compiling():
    compiled(torch.ones(1))
try:
    compiled(torch.ones(2, 2))
except RuntimeError:
    outcome += ", again"
compiler.once_imported("settings", lambda: acts.append("at once"))
print(json.dumps([before, acts, outcome, compiler.is_imported(), compiler.num_graphs()]))
"""
    before, acts, outcome, is_imported, num_graphs = apart(LEAN + program)
    assert before == [False, 0]
    assert acts == ["second", "at once"]
    assert "recompile" in outcome
    assert outcome.endswith(", again")
    assert is_imported
    assert num_graphs == 1


def test_a_model_that_compiles_after_one_that_did_not_is_let_and_then_no_more() -> None:
    program = """
compiler.fail_on_recompile()
with compiler.compiling():
    first = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).tolist()
from torch._dynamo import eval_frame
print(json.dumps([first, eval_frame._stance.stance]))
"""
    assert apart(LEAN + program) == [[2.0], "fail_on_recompile"]


def test_marks_of_transformers_are_made_when_the_compiler_is_imported() -> None:
    """Functions that it is not to look into, or not to compile, are so however late it comes."""
    program = """
import transformers.models.llama.modeling_llama
from transformers import PreTrainedModel, masking_utils
from transformers.integrations import deepgemm
heavy = [name for name in ("torch._dynamo", "sympy", "torch.distributed.tensor") if name in sys.modules]
marked = PreTrainedModel.can_record_outputs.fget
import torch._dynamo
from torch._dynamo import trace_rules
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
constants = [each for each in vars(deepgemm).values() if getattr(each, "_dynamo_marked_constant", False)]
calls = []
def traced(graph, inputs):
    calls.append(graph)
    return graph.forward
from worker_service.model.lean_imports import _disabled
apart = _disabled(lambda x: x * 3)
compiled = torch.compile(lambda x: apart(x + 1) + 1, backend=traced)
value = compiled(torch.ones(1)).item()
multiplied = any("mul" in str(node) for graph in calls for node in graph.graph.nodes)
with masking_utils.TransformGetItemToIndex() as _:
    pass
print(json.dumps([heavy, trace_rules.is_callable_allowed(marked), len(constants) > 0, value, multiplied,
    isinstance(masking_utils.TransformGetItemToIndex(), TransformGetItemToIndex),
    torch._dynamo.__spec__ is not None, torch.compiler.disable.__module__]))
"""
    assert apart(LEAN + program) == [[], True, True, 7.0, False, True, True, "torch.compiler"]


def test_masks_that_need_dynamos_class_are_made_with_the_compiler() -> None:
    program = """
from transformers import masking_utils
from worker_service.model.lean_imports import without_compiler
made = without_compiler(masking_utils.TransformGetItemToIndex)
print(json.dumps([type(made).__name__, compiler.is_imported()]))
"""
    assert apart(LEAN + program) == ["TransformGetItemToIndex", True]


def test_other_threads_find_their_modules_while_the_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = compiler._CompilerFinder()
    seen: list[bool] = []

    class Looking(MetaPathFinder):
        def find_spec(self, *_: Any) -> None:
            seen.append(sys.meta_path[0] is finder)

    monkeypatch.setattr(sys, "meta_path", [finder, Looking(), *sys.meta_path])
    assert finder.find_spec(compiler.DYNAMO, torch.__path__) is not None
    assert seen == [True]


def test_what_needs_more_of_the_compiler_is_imported_plainly(tmp_path: Path) -> None:
    """An installed package that transformers tries may do that."""
    (tmp_path / "needs_more.py").write_text("import torch._dynamo.utils\nfrom transformers import PreTrainedModel\n")
    program = f"""
import json, sys
sys.path.insert(0, {str(tmp_path)!r})
from worker_service.model.lean_imports import import_leanly
import_leanly("needs_more")
before = "torch._dynamo" in sys.modules
import needs_more, torch
print(json.dumps([before, torch._dynamo.__spec__ is not None, needs_more.PreTrainedModel.__name__]))
"""
    assert apart(program) == [False, True, "PreTrainedModel"]


def test_the_cpp_compiler_is_the_one_that_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cpp_compiler.cache_clear()
    assert library.cpp_compiler() == get_cpp_compiler()
    program = "import json\nfrom torch._inductor.cpp_builder import get_cpp_compiler as theirs\n"
    program += (
        "from worker_service.model.cpu.library import cpp_compiler\nprint(json.dumps([theirs(), cpp_compiler()]))"
    )
    monkeypatch.setenv("CXX", "c++")
    assert apart(program) == ["c++", "c++"]


@pytest.mark.parametrize(("program", "found"), [("sleep 10", "TimeoutExpired"), ("exit 1", "CalledProcessError")])
def test_a_compiler_that_does_not_answer_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, found: str
) -> None:
    """On a machine that is busy, a worker with a compiler would not start otherwise."""
    path = tmp_path / "slow"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o700)
    monkeypatch.setattr(code_key, "cpp_compiler", lambda: str(path))
    monkeypatch.setattr(code_key, "_COMPILER_TIMEOUT_S", 0.2)
    assert code_key._compiler() == f"{path}, {found}"
    path.unlink()
    assert code_key._compiler() == ""


def test_a_full_device_is_not_said_to_be_a_lacking_compiler() -> None:
    with pytest.raises(torch.OutOfMemoryError), code_key.telling_missing_compiler(CodeKey({"compiler": ""})):
        raise torch.OutOfMemoryError
    with (
        pytest.raises(CompilerMissingError, match="No working"),
        code_key.telling_missing_compiler(CodeKey({"compiler": ""})),
    ):
        raise RuntimeError("No working C++ compiler found")
