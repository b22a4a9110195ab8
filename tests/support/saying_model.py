"""An echo model that says a given text, whatever it is asked, under a chat template that knows tools."""

import dataclasses

from tests.support.echo_model import EOS, EchoModel, EchoRunner, EchoTokenizer, echo_model
from worker_service.engine.messages import SampledToken, Segment

TEMPLATE = """
{%- for tool in tools or [] %}[{{ tool.function.name }} {{ tool.function.parameters.type }}]{% endfor -%}
{{- mood | default("") }}{{ reasoning_effort | default("") }}
{%- for turn in messages %}<{{ turn.role }}>{{ turn.content or "" }}
    {%- for call in turn.tool_calls or [] %}({{ call.function.name }} {{ call.function.arguments.city }}){% endfor %}
    {%- if turn.tool_call_id %}#{{ turn.tool_call_id }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""


@dataclasses.dataclass
class SayingRunner(EchoRunner):
    """Says its text, then ends."""

    text: bytes = b""

    def _next(self, segment: Segment) -> SampledToken | None:
        if segment.sampling is None:
            return None
        position = len(segment.history) - segment.num_prompt_tokens
        return SampledToken(self.text[position] if position < len(self.text) else EOS, None, ())


def saying_model(text: str, *, max_running: int = 4, max_waiting: int = 64, step_s: float = 0.0) -> EchoModel:
    """A model that says this text."""
    model = echo_model(max_running=max_running, max_waiting=max_waiting)
    runner = SayingRunner(model.limits.num_slots, step_s=step_s, text=text.encode())
    return dataclasses.replace(model, runner=runner, tokenizer=knowing_tools())


def knowing_tools() -> EchoTokenizer:
    """A tokenizer with the template."""
    tokenizer = EchoTokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer
