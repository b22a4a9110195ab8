// OpenAI's own client, unmodified, against a gateway: what a program of its users does.
//
// node openai_client.js URL MODEL BASE, prints one JSON document.
'use strict';

const { OpenAI } = require('openai');

async function refusal(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

async function main() {
  const [url, model, base] = process.argv.slice(2);
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 2, timeout: 60_000 });
  const messages = [{ role: 'user', content: 'hello' }];
  const chat = { model, messages, temperature: 0, max_tokens: 64 };
  const found = { models: [], streamed: '', usage: null, cancelled: false };

  for await (const listed of client.models.list()) found.models.push(listed.id);
  const { data, response } = await client.chat.completions.create(chat).withResponse();
  found.answer = data.choices[0].message.content;
  found.fingerprint = data.system_fingerprint;
  found.adapters = response.headers.get('hotslot-adapters');

  const stream = await client.chat.completions.create({
    ...chat, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    found.streamed += chunk.choices[0]?.delta?.content ?? '';
    found.usage = chunk.usage ?? found.usage;
  }
  const three = await client.chat.completions.create({ ...chat, n: 3 });
  found.three = three.choices.map((choice) => choice.message.content);
  const stopped = await client.completions.create({ model: base, prompt: 'endless', stop: 'eb', max_tokens: 64 });
  found.stopped = stopped.choices[0].text;
  const scored = await client.chat.completions.create({ ...chat, model: base, logprobs: true, top_logprobs: 2 });
  found.logprobs = scored.choices[0].logprobs.content.map((token) => token.logprob);
  found.unknown = await refusal(() => client.chat.completions.create({ ...chat, model: 'nobody' }));
  found.wrong = await refusal(() => client.chat.completions.create({ ...chat, temperature: -1 }));

  const endless = await client.completions.create({ model: base, prompt: 'endless', max_tokens: 400, stream: true });
  for await (const chunk of endless) {
    found.cancelled = chunk.choices[0].text.length > 0;
    if (found.cancelled) break;
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
