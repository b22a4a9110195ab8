// Wrong uses of a worker and a store by a client that knows only the protos: one JSON line for each, with its status.
//
// node wrong_uses.js PROTOS_DIR STORE WORKER
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_MS = 20_000;
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

function load(protosDir, ...file) {
  const definition = protoLoader.loadSync(path.join(...file), { ...OPTIONS, includeDirs: [protosDir] });
  return grpc.loadPackageDefinition(definition).hotslot;
}

function metadata(entries) {
  const made = new grpc.Metadata();
  for (const [key, value] of entries ?? []) made.add(key, value);
  return made;
}

function reasonOf(failure) {
  const [details] = failure.metadata?.get('grpc-status-details-bin') ?? [];
  const found = details ? /[A-Z]+(?:_[A-Z]+)+/.exec(details.toString('latin1')) : null;
  return { code: grpc.status[failure.code], reason: found ? found[0] : '', message: failure.details };
}

function unary(stub, method, request, { entries, deadlineMs = DEADLINE_MS } = {}) {
  return new Promise((resolve) => {
    const options = { deadline: Date.now() + deadlineMs };
    stub[method](request, metadata(entries), options, (failure) => resolve(failure ? reasonOf(failure) : { code: 'OK' }));
  });
}

async function stream(stub, request, { entries, deadlineMs = DEADLINE_MS, leave } = {}) {
  const call = stub.Generate(request, metadata(entries), { deadline: Date.now() + deadlineMs });
  try {
    for await (const response of call) {
      if (leave && response.event === 'chunk') call.cancel();
    }
    return { code: 'OK' };
  } catch (failure) {
    return reasonOf(failure);
  }
}

function raw(stub, method, bytes) {
  return new Promise((resolve) => {
    const same = (value) => value;
    stub.makeUnaryRequest(method, same, same, bytes, metadata(), { deadline: Date.now() + DEADLINE_MS }, (failure) =>
      resolve(failure ? reasonOf(failure) : { code: 'OK' }),
    );
  });
}

async function main([protosDir, storeEndpoint, workerEndpoint]) {
  const insecure = grpc.credentials.createInsecure();
  const { InferenceService } = load(protosDir, 'hotslot', 'worker', 'v1', 'inference.proto').worker.v1;
  const { AdapterStoreService } = load(protosDir, 'hotslot', 'store', 'v1', 'adapter_store.proto').store.v1;
  const worker = new InferenceService(workerEndpoint, insecure);
  const store = new AdapterStoreService(storeEndpoint, insecure);
  const misled = new InferenceService(storeEndpoint, insecure);
  const nowhere = new InferenceService('127.0.0.1:1', insecure);
  const turn = (message) => ({ chat: { messages: [message] } });

  const uses = {
    'no prompt': () => stream(worker, {}),
    'an adapter that is not there': () => stream(worker, { text: 'hi', adapters: [{ reference: 'nobody' }] }),
    'a reference that is none': () => stream(worker, { text: 'hi', adapters: [{ reference: 'A B' }] }),
    'an adapter twice': () => stream(worker, { text: 'hi', adapters: [{ reference: 'bot' }, { reference: 'bot' }] }),
    'the base alone with an adapter': () => stream(worker, { text: 'hi', base_only: true, adapters: [{ reference: 'bot' }] }),
    'a weight that is no number': () => stream(worker, { text: 'hi', adapters: [{ reference: 'bot', weight: NaN }] }),
    'a temperature beyond its range': () => stream(worker, { text: 'hi', sampling: { temperature: 1000 } }),
    'a share that is no number': () => stream(worker, { text: 'hi', sampling: { top_p: NaN } }),
    'fewer tokens than none': () => stream(worker, { text: 'hi', stop: { max_tokens: -1 } }),
    'an empty stop string': () => stream(worker, { text: 'hi', stop: { stop_strings: [''] } }),
    'more choices than are served': () => stream(worker, { text: 'hi', num_choices: 10000 }),
    'a token that the vocabulary does not have': () => stream(worker, { tokens: { token_ids: [100000] } }),
    'a prompt that does not fit': () => stream(worker, { text: 'x'.repeat(5000) }),
    'a message that is too large': () => stream(worker, { text: 'x'.repeat(5 * 2 ** 20) }),
    'a turn without a role': () => stream(worker, turn({ content: 'hi' })),
    'a part of no kind': () => stream(worker, turn({ role: 'user', parts: [{ text: 'a' }, {}] })),
    'a tool that is no JSON': () => stream(worker, { chat: { messages: [{ role: 'user', content: 'a' }], tools_json: ['{'] } }),
    'a tenant that is none': () => stream(worker, { text: 'hi' }, { entries: [['hotslot-tenant', 'A B']] }),
    'two tenants': () => stream(worker, { text: 'hi' }, { entries: [['hotslot-tenant', 'a'], ['hotslot-tenant', 'b']] }),
    'a deadline that has passed': () => stream(worker, { text: 'hi' }, { deadlineMs: -1000 }),
    'a deadline in the middle': () => stream(worker, { text: 'endless' }, { deadlineMs: 500 }),
    'a stream that is left': () => stream(worker, { text: 'endless' }, { leave: true }),
    'a whole answer without a request': () => unary(worker, 'Complete', {}),
    'a whole answer that takes too long': () => unary(worker, 'Complete', { request: { text: 'endless' } }, { deadlineMs: 500 }),
    'nothing to count': () => unary(worker, 'CountTokens', {}),
    'a token below none': () => unary(worker, 'Detokenize', { token_ids: [-1] }),
    'bytes that are no message': () => raw(worker, '/hotslot.worker.v1.InferenceService/Complete', Buffer.from('\xff\xff\xff')),
    'a method that is not there': () => raw(worker, '/hotslot.worker.v1.InferenceService/Ponder', Buffer.alloc(0)),
    'a store in the place of a worker': () => stream(misled, { text: 'hi' }),
    'a worker that is away': () => stream(nowhere, { text: 'hi' }, { deadlineMs: 3000 }),
    'a page token of nobody': () => unary(store, 'ListAdapters', { page_token: 'x' }),
    'a tag without a digest': () => unary(store, 'SetTag', { adapter: 'bot', tag: 'a' }),
    'a tag of an adapter that is not there': () =>
      unary(store, 'DeleteTag', { adapter: 'nobody', tag: 'a' }),
  };
  for (const [what, use] of Object.entries(uses)) {
    const beganMs = Date.now();
    const found = await use();
    console.log(JSON.stringify({ what, ...found, took_ms: Date.now() - beganMs }));
  }
  for (const stub of [worker, store, misled, nowhere]) stub.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
