// OpenAI's own client, unmodified: calls of tools whole and streamed, retries while a worker is full, and cancellation.
//
// node openai_tools.js URL BASE, prints one JSON document. The worker has one row, and room for nobody who waits.
'use strict';

const { OpenAI } = require('openai');

const TOOLS = [{
  type: 'function',
  function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } },
}];

const callsOf = (message) => message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

async function main() {
  const [url, model] = process.argv.slice(2);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 60_000 });
  const chat = { model, messages: [{ role: 'user', content: 'rain?' }], tools: TOOLS, max_tokens: 256 };
  const patient = { maxRetries: 20 };
  const found = {};

  const whole = await client.chat.completions.create(chat);
  found.whole = [whole.choices[0].finish_reason, callsOf(whole.choices[0].message)];
  const streamed = await client.chat.completions.stream(chat, patient).finalChatCompletion();
  found.streamed = [streamed.choices[0].finish_reason, callsOf(streamed.choices[0].message)];

  const busy = await client.chat.completions.create({ ...chat, stream: true }, patient);
  const pieces = busy[Symbol.asyncIterator]();
  await pieces.next();
  found.full = await client.chat.completions.create(chat).then(() => null, (error) => [error.constructor.name, error.code]);
  const [retried] = await Promise.all([
    client.chat.completions.create(chat, patient),
    (async () => { for (let piece = {}; !piece.done; piece = await pieces.next()); })(),
  ]);
  found.retried = retried.choices[0].finish_reason;

  const leaving = new AbortController();
  const left = await client.chat.completions.create({ ...chat, stream: true }, { ...patient, signal: leaving.signal });
  let seen = 0;
  try {
    for await (const _ of left) if (++seen === 2) leaving.abort();
  } catch (error) {
    found.aborted = error.constructor.name;
  }
  found.seen = seen;
  found.forced = await client.chat.completions.create({ ...chat, tool_choice: 'required' })
    .then(() => null, (error) => [error.constructor.name, error.param]);
  console.log(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
