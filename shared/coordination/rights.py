"""Rights of the user of Redis: the least ACL rule that hotslot works with."""

import re

from shared.coordination import directory_functions, member_functions, rate_functions
from shared.coordination.keys import KEY_PATTERN
from shared.coordination.lua import LuaFunction

CALLED = ("eval", "evalsha", "exists", "zrange")
"""Commands that are sent as they are; all others are called by scripts, with the user's rights."""
CALLED_ON_CLUSTER = ("cluster|slots", "command")
"""By which the client of a cluster learns where keys are."""
SENTINEL_RULE = "resetkeys resetchannels -@all +sentinel|masters +sentinel|get-master-addr-by-name"
"""Rule for the user of sentinels, which `sentinel_username` names; the second command is asked by `hotslot doctor`."""
_CALL = re.compile(r"redis\.call\('([A-Za-z]+)'")


def commands() -> tuple[str, ...]:
    """Every command that one node of Redis must let its user run."""
    functions = (
        each for module in (member_functions, directory_functions, rate_functions) for each in vars(module).values()
    )
    texts = [each.script.text for each in functions if isinstance(each, LuaFunction)]
    called_by_scripts = {name.lower() for text in texts for name in _CALL.findall(text)}
    return tuple(sorted(called_by_scripts | set(CALLED)))


def acl_rule(*, cluster: bool = False) -> str:
    """Rule for `ACL SETUSER name on >password`, which gives exactly what is needed."""
    allowed = (*commands(), *(CALLED_ON_CLUSTER if cluster else ()))
    return f"resetkeys ~{KEY_PATTERN} resetchannels -@all {' '.join(f'+{name}' for name in allowed)}"
