// node example.js PROTOS_DIR STORE WORKER FOLDER BASE_MODEL NAME OTHER_ADAPTER: each call once. Prints JSON lines.
//
// HOTSLOT_TOKEN and HOTSLOT_TLS_CA_FILE, HOTSLOT_TLS_CERT_FILE, HOTSLOT_TLS_KEY_FILE say who calls, as for our own client.
'use strict';

const fs = require('node:fs');
const { HotslotError, Store, Worker } = require('./hotslot.js');

function security() {
  const read = (name) => process.env[name] && fs.readFileSync(process.env[name]);
  const ca = read('HOTSLOT_TLS_CA_FILE');
  const own = { cert: read('HOTSLOT_TLS_CERT_FILE') ?? null, key: read('HOTSLOT_TLS_KEY_FILE') ?? null };
  return { tls: ca && { ca, ...own }, token: process.env.HOTSLOT_TOKEN };
}

async function main([protosDir, storeEndpoint, endpoint, folder, baseModel, adapter, other]) {
  const options = { protosDir, timeoutMs: 60_000, ...security() };
  const store = new Store(storeEndpoint, options);
  const worker = new Worker(endpoint, options);
  const tell = (what, found) => console.log(JSON.stringify({ what, ...found }));

  const pushed = await store.push(folder, adapter, { baseModel, annotations: { step: '40' }, tags: ['best'] });
  tell('push', { digest: pushed.version.digest, created: pushed.created, tags: pushed.version.tags });

  // A stream, from one adapter, served by what was just pushed.
  let text = '';
  let served = [];
  for await (const event of worker.generate({
    text: 'Tell me of the sea.',
    adapters: [{ reference: adapter }],
    stop: { max_tokens: 40 },
    min_revision: pushed.revision,
  })) {
    if (event.started) served = event.started.adapters.map(({ reference, digest }) => ({ reference, digest }));
    if (event.chunk) text += event.chunk.text;
  }
  tell('stream', { text, served });

  // A mix of two adapters by weights, as a whole answer.
  const mix = await worker.complete({
    chat: { messages: [{ role: 'user', content: 'Tell me of the sea.' }] },
    adapters: [
      { reference: adapter, weight: 0.5 },
      { reference: other, weight: 0.25 },
    ],
    stop: { max_tokens: 40 },
  });
  tell('mix', { text: mix.choices[0].text, reason: mix.choices[0].finished.reason });

  const counted = await worker.countTokens({ text: 'Tell me of the sea.', with_tokens: true });
  tell('count', { tokens: counted.num_tokens, texts: counted.tokens.map((token) => token.text) });

  // An error with its reason, and the fields that are at fault.
  for (const request of [
    { text: 'hi', adapters: [{ reference: 'no-such-adapter' }] },
    { text: 'hi', sampling: { temperature: -1 } },
  ]) {
    try {
      await worker.complete(request);
    } catch (error) {
      if (!(error instanceof HotslotError)) throw error;
      tell('refused', { code: error.code, reason: error.reason, fields: error.fields.map(({ field }) => field) });
    }
  }

  // A deadline, and a request that is left in the middle.
  await worker.complete({ text: 'endless' }, { timeoutMs: 300 }).catch(({ code }) => tell('deadline', { code }));
  for await (const event of worker.generate({ text: 'endless' })) {
    if (event.chunk) break;
  }
  tell('left', {});

  // A worker that is away is tried again, until the deadline or the last attempt.
  const away = new Worker('127.0.0.1:1', { protosDir, attempts: 3 });
  const beganMs = Date.now();
  await away.complete({ text: 'hi' }).catch(({ code }) => tell('away', { code, waited: Date.now() - beganMs >= 150 }));
  away.close();
  store.close();
  worker.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
