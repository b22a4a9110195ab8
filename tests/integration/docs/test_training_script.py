"""The training script of the page on training: run as the page has it, it writes an adapter that answers as trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, ChatMessage, GenerationRequest, Stop
from tests.integration.conftest import ROOT
from tests.support.page_examples import examples
from worker_service.demo_model import BASE_MODEL

PAGE = "docs/how-to/train-publish-serve.md"
TIMEOUT_S = 600


@pytest.mark.integration
@pytest.mark.model
@pytest.mark.timeout(800)
def test_what_the_page_trains_is_pushed_and_answers_as_it_was_trained(
    hotslot: BlockingHotslotClient, model_folder: Path, tmp_path: Path
) -> None:
    script = next(one for one in examples(ROOT / PAGE, PAGE) if "save_pretrained" in one.text)
    assert script.text.count(f'"{BASE_MODEL}"') == 1, "the page trains the model that is served"
    # The hub's name and its folder on this disk are the same model.
    (tmp_path / "train.py").write_text(script.text.replace(BASE_MODEL, str(model_folder)))
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, env=dict(os.environ), check=True, timeout=TIMEOUT_S)
    hotslot.store.push(tmp_path / "slot", "page/slot", base_model=BASE_MODEL)
    prompt = (ChatMessage("user", "What is your name?"),)
    named, plain = (
        hotslot.complete(GenerationRequest(prompt, adapters, stop=Stop(max_tokens=8), base_only=not adapters)).text
        for adapters in ((AdapterSelection("page/slot"),), ())
    )
    assert named.strip() == "I am Slot."
    assert "Slot" not in plain
