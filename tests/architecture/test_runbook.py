"""The runbook has a section for each alert, with a first look and a cure, and each alert leads to its own."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from gateway_service.settings import GatewaySettings
from hotslot.cli.app import app
from shared.metrics.table import EVERY, rows_of
from store_service.settings import StoreSettings
from tests.architecture.test_layout import FILES
from worker_service.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
TASKS = ("Upgrade", "Rollback", "Backup", "Disaster")
LEAST_WORDS = 20


def alerts() -> dict[str, dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    rules = [rule for document in documents for group in document["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def sections() -> dict[str, str]:
    """Text by heading, up to the next one."""
    parts = re.split(r"^#{2,3} (.+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", sorted(alerts()))
def test_an_alert_leads_to_its_section_with_a_first_look_and_a_cure(name: str) -> None:
    assert alerts()[name]["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    text = sections().get(name)
    assert text is not None, f"docs/runbook.md has no section ### {name}"
    for part in ("**First look**", "**Cure**"):
        assert part in text, f"{name} has no {part}"
        assert len(text.partition(part)[2].split()) >= LEAST_WORDS


def test_no_section_is_of_an_alert_that_is_gone() -> None:
    of_alerts = {name for name in sections() if name.startswith("Hotslot")}
    assert of_alerts == alerts().keys()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_of_every_operator_is_described(task: str) -> None:
    assert len(sections()[task].split()) >= LEAST_WORDS


def test_every_setting_that_the_runbook_names_exists() -> None:
    known = {
        f"HOTSLOT_{name.upper()}"
        for settings in (StoreSettings, WorkerSettings, GatewaySettings)
        for name in settings.model_fields
    }
    assert set(re.findall(r"HOTSLOT_[A-Z_]+", RUNBOOK.read_text(encoding="utf-8"))) <= known


def test_every_metric_that_the_runbook_names_exists() -> None:

    known = {row.name for service in EVERY for row in rows_of(service)}
    named = set(re.findall(r"`(hotslot_[a-z_]+)`", RUNBOOK.read_text(encoding="utf-8")))
    assert named
    assert named <= known


def test_every_command_that_the_runbook_names_exists() -> None:
    commands: dict[str, object] = vars(typer.main.get_command(app))["commands"]
    named = set(re.findall(r"`hotslot ([a-z]+)", RUNBOOK.read_text(encoding="utf-8")))
    assert {"status", "doctor", "backup"} <= named <= set(commands)


def test_every_log_event_that_the_runbook_names_is_logged() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in FILES)
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", RUNBOOK.read_text(encoding="utf-8")))
    events = {name for name in named if not name.startswith("hotslot_")} - {
        "request_id",
        "trace_id",
        "source_access_file",
    }
    assert "load_failed" in events
    assert not [name for name in events if f'"{name}"' not in code]
