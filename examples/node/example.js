// node example.js PROTOS_DIR WORKER ADAPTER OTHER_ADAPTER: each call of a worker once. Prints JSON lines.
'use strict';

const { HotslotError, Worker } = require('./hotslot.js');

async function main([protosDir, endpoint, adapter, other]) {
  const worker = new Worker(endpoint, { protosDir, timeoutMs: 60_000 });
  const tell = (what, found) => console.log(JSON.stringify({ what, ...found }));

  // A stream, from one adapter.
  let text = '';
  let served = [];
  for await (const event of worker.generate({
    text: 'Tell me of the sea.',
    adapters: [{ reference: adapter }],
    stop: { max_tokens: 40 },
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
  worker.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
