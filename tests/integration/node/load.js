// Plain clients that ask one address for one generation after the other, until standard input ends.
//
// node load.js PROTOS_DIR ENDPOINT CLIENTS PAUSE_MS ADAPTER…, prints {asked, answered, failures} as JSON: an answer
// counts when its tokens are those of the digest that it names, as the echo model speaks them.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_MS = 60_000;
const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

async function ask(worker, reference) {
  let text = '';
  let digest = '';
  const request = { text: 'hello', adapters: [{ reference }] };
  for await (const response of worker.Generate(request, { deadline: new Date(Date.now() + DEADLINE_MS) })) {
    if (response.event === 'started') {
      digest = response.started.adapters[0].digest;
    } else if (response.event === 'chunk') {
      text += response.chunk.text;
    }
  }
  if (text !== `${digest.slice(7, 15)}*1`) {
    throw new Error(`${reference}: ${digest} was named, and ${text} said`);
  }
}

async function main([protosDir, endpoint, clients, pauseMs, ...adapters]) {
  const file = path.join('hotslot', 'worker', 'v1', 'inference.proto');
  const definition = protoLoader.loadSync(file, { ...OPTIONS, includeDirs: [protosDir] });
  const { InferenceService } = grpc.loadPackageDefinition(definition).hotslot.worker.v1;
  const found = { asked: 0, answered: 0, failures: [] };
  let stopped = false;
  process.stdin.on('end', () => (stopped = true)).resume();

  const client = async (number) => {
    // A connection of its own, as every process would have.
    const options = { 'grpc.use_local_subchannel_pool': 1 };
    const worker = new InferenceService(endpoint, grpc.credentials.createInsecure(), options);
    for (let turn = number; !stopped; turn += 1) {
      found.asked += 1;
      try {
        await ask(worker, adapters[turn % adapters.length]);
        found.answered += 1;
      } catch (error) {
        found.failures.push(`${grpc.status[error.code]}: ${error.details ?? error.message}`);
      }
      await new Promise((resolve) => setTimeout(resolve, Number(pauseMs)));
    }
    worker.close();
  };
  await Promise.all(Array.from({ length: Number(clients) }, (_, number) => client(number)));
  console.log(JSON.stringify(found));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
