// A plain client that knows hotslot only by its protos: lists adapters, streams a generation, sees a typed error.
//
// node client.js PROTOS_DIR STORE WORKER ADAPTER PROMPT, prints one JSON document.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_MS = 120_000;
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

function load(protosDir, file) {
  const definition = protoLoader.loadSync(file, { ...OPTIONS, includeDirs: [protosDir] });
  return grpc.loadPackageDefinition(definition).hotslot;
}

function deadline() {
  return { deadline: new Date(Date.now() + DEADLINE_MS) };
}

async function listAdapters(store) {
  const names = [];
  let pageToken = '';
  do {
    const page = await new Promise((resolve, reject) => {
      store.ListAdapters({ page_size: 1, page_token: pageToken }, deadline(), (error, response) =>
        error ? reject(error) : resolve(response),
      );
    });
    names.push(...page.adapters.map((adapter) => adapter.name));
    pageToken = page.next_page_token;
  } while (pageToken);
  return names;
}

async function generate(worker, request) {
  const events = [];
  for await (const response of worker.Generate(request, deadline())) {
    events.push({ kind: response.event, ...response[response.event] });
  }
  return events;
}

function reasonOf(error) {
  // google.rpc.Status travels in the trailers; the reason is readable in it without its proto.
  const [details] = error.metadata.get('grpc-status-details-bin');
  const found = details ? /[A-Z]+(?:_[A-Z]+)+/.exec(details.toString('latin1')) : null;
  return { code: grpc.status[error.code], reason: found ? found[0] : '', message: error.details };
}

async function main([protosDir, storeEndpoint, workerEndpoint, adapter, prompt]) {
  const insecure = grpc.credentials.createInsecure();
  const storeProto = path.join('hotslot', 'store', 'v1', 'adapter_store.proto');
  const workerProto = path.join('hotslot', 'worker', 'v1', 'inference.proto');
  const store = new (load(protosDir, storeProto).store.v1.AdapterStoreService)(storeEndpoint, insecure);
  const worker = new (load(protosDir, workerProto).worker.v1.InferenceService)(workerEndpoint, insecure);

  const request = (reference) => ({
    chat: { messages: [{ role: 'user', content: prompt }] },
    adapters: [{ reference, weight: 1 }],
    stop: { max_tokens: 12 },
  });
  const adapters = await listAdapters(store);
  const events = await generate(worker, request(adapter));
  const refused = await generate(worker, request('no-such-adapter')).catch(reasonOf);

  store.close();
  worker.close();
  console.log(JSON.stringify({ adapters, events, refused }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
