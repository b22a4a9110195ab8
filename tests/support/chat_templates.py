"""Chat templates as published models have them: one for each way of treating messages."""

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PARTS = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + ':' }}
    {%- for part in message['content'] %}
        {%- if part['type'] == 'image' %}{{ '<image>' }}{%- elif part['type'] == 'text' %}{{ part['text'] }}{%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
"""
"""Takes parts alone, as vision models do."""

EITHER = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if 'text' in content %}{{ content.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

GEMMA = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = message['role'] %}
    {%- if role == 'assistant' %}{% set role = 'model' %}{% endif %}
    {{- '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}
"""
"""Trims, renames roles and refuses."""

ROLE_TOKENS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Makes special tokens out of roles."""

THINKING = """
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.last and reasoning %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""
"""Splits answers at their thoughts, takes tools, calls and an argument."""

SHOUTING = "{% for m in messages %}{{ m.role | upper + ': ' + m.content | upper | trim + '\n' }}{% endfor %}"

MARKED_ANSWERS = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}{{ message.content }}{%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
"""Marks what is trained on."""

USERS_ONLY = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ 'A:' + m.content }}{% endif %}{% endfor %}"
)
"""Leaves out roles that it does not know."""

CALLS_AS_TEXT = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ':' }}
    {%- if message.content is not none %}{{ message.content }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '[' + call.function.name + call.function.arguments + ']' }}
    {%- endfor %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
"""
"""Takes the arguments of calls as text alone."""

CALLS_PRINTED = CALLS_AS_TEXT.replace(" + call.function.arguments + ", " ~ call.function.arguments ~ ")
"""Writes arguments as they are: an object as Python does."""

CALLS_BY_NAME = CALLS_AS_TEXT.replace(" + call.function.arguments + ", " + ")
"""Leaves out the arguments of calls."""

CALLS_OF_ONE_ARGUMENT = CALLS_AS_TEXT.replace("call.function.arguments +", "call.function.arguments.city +")
"""Writes the argument that it knows."""

CALLS_WITHOUT_CONTENT = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ':' }}
    {%- if message.content is none %}
        {%- for call in message.tool_calls %}{{ '[' + call.function.name + call.function.arguments + ']' }}{% endfor %}
    {%- else %}{{ message.content }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
"""
"""Shows calls where a message has no content, and leaves them out where it has."""

TOOLS_WITHOUT_CALLS = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + ':' + message.content }}{% endfor %}
"""
"""Lists tools and leaves out their calls."""

FIRST_PARTS = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ':' }}
    {%- if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif %}
{%- endfor %}
"""
"""Leaves out every part but the first."""

TAKING_STRINGS = {
    "chatml": CHATML,
    "either": EITHER,
    "gemma": GEMMA,
    "role tokens": ROLE_TOKENS,
    "thinking": THINKING,
    "shouting": SHOUTING,
    "marked answers": MARKED_ANSWERS,
}
