"""Pushes of adapters whose configs call their base as no registered one is called, against a real store."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotslot import BlockingHotslotClient, BlockingStoreClient, ChannelOptions
from hotslot.cli.app import run
from hotslot.cli.base_question import choose_base
from hotslot.cli.failures import hint
from hotslot.errors import AdapterNotFoundError, BaseModelMismatchError, BaseModelNotFoundError, InvalidRequestError
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.ids import TenantId
from hotslot.local.children import Child
from tests.integration.hotslot.conftest import TENANT

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("store")]

Folder = Callable[..., Path]
OTHER_NAMES = [
    "/home/me/models/Choice-7B", "./Choice-7B/", "ACME/choice-7b", "unsloth/Choice-7B-bnb-4bit",
    "unsloth/choice-7b-unsloth-bnb-4bit", "TheBloke/Choice-7B-GPTQ", "C:\\models\\choice", "",
]  # fmt: skip


def spec(name: str, width: int, layers: int = 2) -> BaseSpec:
    paths = [f"model.layers.{layer}.self_attn.{part}" for layer in range(layers) for part in ("q_proj", "v_proj")]
    modules = tuple(BaseModule(path, ModuleKind.LINEAR, width, width) for path in paths)
    return BaseSpec(name, "llama", f"{width:064}", modules)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An adapter of a width that no other test's base model has."""

    def write(base: str, width: int = 56) -> Path:
        made = tmp_path / f"adapter-{width}"
        made.mkdir(exist_ok=True)
        tensors = {}
        for module in spec("", width).modules:
            tensors[f"base_model.model.{module.path}.lora_A.weight"] = np.ones((4, width), np.float32)
            tensors[f"base_model.model.{module.path}.lora_B.weight"] = np.ones((width, 4), np.float32)
        save_file(tensors, made / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        (made / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        return made

    return write


@pytest.fixture
def where(store_process: Child, store: BlockingStoreClient) -> list[str]:
    store.register_base_model(spec("acme/Choice-7B", 56))
    store.register_base_model(spec("acme/Wide-7B", 72))
    return ["--store", store_process.spec.endpoint, "--tenant", TENANT]


@pytest.fixture
def hotslot(store_process: Child) -> Iterator[BlockingHotslotClient]:
    options = ChannelOptions(tenant=TenantId(TENANT))
    with BlockingHotslotClient(store_process.spec.endpoint, None, options=options) as client:
        yield client


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_without_a_terminal_a_push_is_refused_with_the_command_that_works(
    name: str, folder: Folder, where: list[str], store: BlockingStoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = folder(name)
    assert run(["push", str(adapter), "choice", *where]) == 2
    assert f"`hotslot push {adapter} choice --base acme/Choice-7B`" in capsys.readouterr().err
    with pytest.raises(AdapterNotFoundError):
        store.get("choice")
    assert run(["push", str(adapter), "choice", *where, "--yes"]) == 0
    assert store.resolve("choice").version.base_model == "acme/Choice-7B"


def test_a_slash_at_the_end_of_a_base_models_name_is_no_other_name(
    folder: Folder, where: list[str], store: BlockingStoreClient
) -> None:
    assert run(["push", str(folder("acme/Choice-7B/")), "choice", *where]) == 0
    assert store.resolve("choice").version.base_model == "acme/Choice-7B"


def test_where_nothing_fits_nothing_is_sent(
    folder: Folder, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(folder("acme/unknown", width=88)), "choice", *where, "--yes"]) == 3
    error = capsys.readouterr().err
    assert "base model 'acme/unknown' is not registered" in error
    assert "sent" not in error


def test_a_registered_name_that_the_tensors_do_not_fit_is_asked_about_too(
    folder: Folder, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["push", str(folder("acme/Wide-7B")), "choice", *where]) == 2
    error = capsys.readouterr().err
    assert "its tensors do not fit that one; they fit acme/Choice-7B" in error


def test_on_a_terminal_people_are_asked(folder: Folder, hotslot: BlockingHotslotClient, where: list[str]) -> None:
    adapter = folder("./my-base", width=104)
    hotslot.store.register_base_model(spec("acme/Asked-7B", 104))
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        def ask(question: str) -> str:
            asked.append(question)
            return text

        return ask

    chosen = choose_base(hotslot, adapter, "choice", yes=False, may_ask=True, ask=answer("y"))
    assert chosen == "acme/Asked-7B"
    assert asked == ["push it for acme/Asked-7B? [y/N] "]
    with pytest.raises(InvalidRequestError, match="nothing was pushed"):
        choose_base(hotslot, adapter, "choice", yes=False, may_ask=True, ask=answer(""))
    hotslot.store.register_base_model(spec("acme/Asked-7B-next", 104, layers=3))
    chosen = choose_base(hotslot, adapter, "choice", yes=True, may_ask=True, ask=answer("2"))
    assert {chosen} < {"acme/Asked-7B", "acme/Asked-7B-next"}
    assert choose_base(hotslot, folder("acme/Asked-7B", width=104), "choice", yes=False, may_ask=False) == ""


def test_an_alias_is_a_name_like_any_other(
    folder: Folder, where: list[str], store: BlockingStoreClient, capsys: pytest.CaptureFixture[str]
) -> None:
    alias = "unsloth/choice-alias-bnb-4bit"
    adapter = folder(alias)
    assert run(["push", str(adapter), "aliased", *where]) == 2
    for _ in range(2):
        assert run(["base", "alias", "acme/Choice-7B", alias, *where]) == 0
    assert run(["push", str(adapter), "aliased", *where]) == 0
    assert store.validate(adapter).valid
    digest = spec("", 56).digest
    assert store.resolve("aliased").version.base_model_digest == digest
    assert run(["base", "alias", "acme/nothing", alias, *where]) == 3
    capsys.readouterr()


def test_the_store_names_what_fits_to_other_callers(
    folder: Folder, where: list[str], store: BlockingStoreClient
) -> None:
    with pytest.raises(BaseModelNotFoundError, match=r"tensors fit .*acme/Choice-7B: name one as base_model") as caught:
        store.push(folder("./mine"), "choice")
    assert hint(caught.value) == ("--base names it, `hotslot base alias acme/Choice-7B ./mine` makes the alias")
    with pytest.raises(BaseModelMismatchError, match=r"its tensors fit .*acme/Choice-7B.*: name one as base_model"):
        store.push(folder("./mine"), "choice", base_model="acme/Wide-7B")
    report = store.validate(folder("./mine"), base_model="acme/Wide-7B")
    assert "acme/Choice-7B" in report.violations[0].message
