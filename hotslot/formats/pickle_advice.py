"""Advice on pickled weights: the command that converts them, to be run where the pickle is trusted."""

import shlex


def conversion_command(pickle: str, target: str) -> str:
    """A command that writes the tensors of a pickle as safetensors, whatever else is in it and however they lie there.

    Copies are made because safetensors takes neither views that share memory nor transposed ones.
    """
    program = (
        "import torch, safetensors.torch as s; "
        f"d = torch.load({pickle!r}, map_location='cpu', weights_only=True); "
        "d = d.get('state_dict', d); "
        "s.save_file({k: v.detach().clone(memory_format=torch.contiguous_format) "
        f"for k, v in d.items() if torch.is_tensor(v)}}, {target!r}, {{'format': 'pt'}})"
    )
    return f"python -c {shlex.quote(program)}"
