"""Names of copies of a base model are told to be alike, and tensors fit exactly the bases that would take them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.formats.safetensors_header import HeaderLimits, parse_header
from store_service.admission.fitting import fits, likeness
from tests.support.checkpoints import KEY_VARIANTS, adapter, base_spec, mlx_adapter, weights_file

NAME = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("copy", "how"),
    [
        ("META-LLAMA/llama-3.1-8b-instruct/", (True, True, True)),
        ("/data/models/Llama-3.1-8B-Instruct", (False, True, True)),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", (False, False, False)),
        ("unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit", (False, False, True)),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16", (False, False, True)),
        ("x/Llama-3.1-8B-Instruct-AWQ-INT4", (False, False, True)),
        ("bartowski/Llama-3.1-8B-Instruct-Q4_K_M-GGUF", (False, False, True)),
        ("meta-llama/Llama-3.1-8B", (False, False, False)),
    ],
)
def test_copies_are_called_alike(copy: str, how: tuple[bool, bool, bool]) -> None:
    assert likeness(copy, NAME) == likeness(NAME, copy) == how


@given(st.sampled_from(sorted(KEY_VARIANTS)), st.integers(1, 4), st.integers(1, 4))
def test_an_adapter_fits_the_bases_that_have_its_layers(variant: str, layers: int, trained_layers: int) -> None:
    draft = adapter(spec=base_spec(num_layers=trained_layers), key=KEY_VARIANTS[variant])
    file = weights_file(draft.tensors)
    header = parse_header(file, len(file), "a", HeaderLimits())
    assert fits(header, base_spec(num_layers=layers)) == (layers >= trained_layers)


def test_transposed_tensors_fit_as_they_mean_it() -> None:
    file = mlx_adapter().files()["adapters.safetensors"]
    assert fits(parse_header(file, len(file), "a", HeaderLimits()), base_spec())
