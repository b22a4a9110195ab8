"""What people import: every error of the contract from the package itself, and nothing by accident."""

import inspect
import pkgutil
from importlib import import_module

import pytest

import hotslot
from hotslot import errors
from hotslot.rpc.status import STATUS_TABLE


def test_every_error_that_a_call_can_raise_is_imported_from_the_package() -> None:
    raised = [row.error for row in STATUS_TABLE]
    assert len(raised) > 70
    for kind in raised:
        assert getattr(hotslot, kind.__name__) is kind
        assert kind.__name__ in hotslot.__all__


@pytest.mark.parametrize("module", [errors, hotslot], ids=lambda module: module.__name__)
def test_what_a_module_exports_is_its_own_and_there_once(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    for name in names:
        assert inspect.getmodule(getattr(module, name)).__name__.startswith("hotslot."), name  # type: ignore[union-attr]


def test_the_list_of_a_module_of_errors_has_no_tools_of_its_own() -> None:
    shown = set(dir(errors))
    assert shown == set(errors.__all__)
    assert not {name for name in shown if not name[0].isupper()}


def test_the_errors_of_every_module_are_in_the_tree() -> None:
    found = set()
    for each in pkgutil.iter_modules(errors.__path__):
        module = import_module(f"hotslot.errors.{each.name}")
        found |= {kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {kind.__name__ for kind in found} == set(errors.__all__) - {"FieldViolation", "Violation"}
