"""One request of the demo over HTTP, by curl where there is one."""

import asyncio
import json
import shlex
import shutil
import urllib.request
from dataclasses import dataclass

from deploy.demo.scenes import ANSWER_TOKENS

TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class OverHttp:
    """A request as one types it, and its answer."""

    command: str
    text: str
    fingerprint: str
    """Digests of what served it."""


async def ask_over_http(endpoint: str, question: str, adapter: str) -> OverHttp:
    """Ask an adapter through the gateway; raises OSError when nothing comes back."""
    body = {
        "model": adapter,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    url, data = f"http://{endpoint}/v1/chat/completions", json.dumps(body)
    command = ["curl", "-s", url, "-H", "content-type: application/json", "-d", data]
    if shutil.which("curl") is None:
        answer = await asyncio.to_thread(_post, url, data.encode())
    else:
        process = await asyncio.create_subprocess_exec(
            *command, "--noproxy", "*", "--max-time", str(TIMEOUT_S), stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await process.communicate()
    if not answer:
        raise OSError(f"nothing came back from {url}")
    found = json.loads(answer)
    if "choices" not in found:
        raise OSError(f"{url} answered {answer.decode()[:300]}")
    text = found["choices"][0]["message"]["content"]
    return OverHttp(shlex.join(command), text, found["system_fingerprint"])


def _post(url: str, data: bytes) -> bytes:
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_S) as response:
        found: bytes = response.read()
    return found
