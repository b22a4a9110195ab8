"""Calls of tools in OpenAI's form: whole messages, and the pieces of streams."""

import secrets
from typing import Any

from gateway_service.call_objects import CallArguments, CallName
from gateway_service.tool_calls import CallContent, CallEvent, ToolFormat, parser_of

Object = dict[str, Any]


class ToldCalls:
    """Calls of one choice, as they come."""

    def __init__(self, format_: ToolFormat) -> None:
        self._parser = parser_of(format_)
        self.count = 0

    def delta(self, text: str, *, is_end: bool = False) -> Object:
        """The part of a streamed message that more text makes; empty while nothing is sure."""
        events = [*self._parser.feed(text), *(self._parser.finish() if is_end else ())]
        content, calls = self._told(events)
        return {**({"content": content} if content else {}), **({"tool_calls": list(calls.values())} if calls else {})}

    def message(self, text: str) -> Object:
        """Fields of a whole message."""
        content, calls = self._told([*self._parser.feed(text), *self._parser.finish()])
        if not calls:
            return {"content": content}
        whole = [{name: value for name, value in call.items() if name != "index"} for call in calls.values()]
        return {"content": content or None, "tool_calls": whole}

    def _told(self, events: list[CallEvent]) -> tuple[str, dict[int, Object]]:
        """Content, and calls by their places."""
        content, calls = "", dict[int, Object]()
        for event in events:
            match event:
                case CallContent():
                    content += event.text
                case CallName():
                    self.count += 1
                    function = {"name": event.name, "arguments": ""}
                    head = {"index": event.index, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
                    calls[event.index] = {**head, "function": function}
                case CallArguments():
                    call = calls.setdefault(event.index, {"index": event.index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += event.text
        return content, calls
