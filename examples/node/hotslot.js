// A client of hotslot, made of the protos alone: pushes, streams, whole answers, typed errors, deadlines, retries.
'use strict';

const { createHash } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 2_000;
const CHUNK_BYTES = 256 * 1024;
// What admission reads; the files of a tokenizer beside them may be sent too.
const CHECKPOINT_FILES = ['adapter_config.json', 'adapter_model.safetensors'];

// google.rpc.Status and the details that hotslot sends: https://google.aip.dev/193.
const { root: RPC } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Any { string type_url = 1; bytes value = 2; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest { repeated FieldViolation field_violations = 1; }
  message FieldViolation { string field = 1; string description = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
`);

/** A call that failed: its status, the stable reason, the fields at fault, and when to come again. */
class HotslotError extends Error {
  constructor(failure) {
    super(failure.details || failure.message);
    this.name = 'HotslotError';
    this.code = grpc.status[failure.code];
    this.reason = '';
    this.fields = [];
    this.retryAfterMs = undefined;
    for (const { type_url: typeUrl, value } of detailsOf(failure)) {
      const kind = typeUrl.slice(typeUrl.lastIndexOf('.') + 1);
      if (!['ErrorInfo', 'BadRequest', 'RetryInfo'].includes(kind)) continue;
      const detail = RPC.lookupType(`google.rpc.${kind}`).decode(value);
      if (kind === 'ErrorInfo' && detail.domain === 'hotslot.dev') this.reason = detail.reason;
      if (kind === 'BadRequest') this.fields = detail.fieldViolations;
      if (kind === 'RetryInfo' && detail.retryDelay) {
        this.retryAfterMs = Number(detail.retryDelay.seconds) * 1_000 + detail.retryDelay.nanos / 1e6;
      }
    }
  }

  /** Whether the same request may succeed soon, or on another worker. */
  get mayRetry() {
    return this.code === 'UNAVAILABLE' || (this.code === 'RESOURCE_EXHAUSTED' && this.retryAfterMs !== undefined);
  }
}

function detailsOf(failure) {
  const [status] = failure.metadata?.get('grpc-status-details-bin') ?? [];
  return status ? RPC.lookupType('google.rpc.Status').decode(status).details.map(named) : [];
}

function named({ typeUrl, type_url, value }) {
  return { type_url: typeUrl ?? type_url, value };
}

/**
 * What clients of a store and of workers have in common: certificates, a token, a tenant, deadlines, retries.
 *
 * `tls` are the texts of {ca, cert, key}, the last two where servers ask for a certificate; without it calls are in
 * plaintext, and a token is refused.
 */
class Client {
  constructor({ tenant, token, tls, timeoutMs = 600_000, attempts = 4 } = {}) {
    if (token && !tls) throw new TypeError('a token would leave in plaintext: give tls');
    this.credentials = tls ? grpc.credentials.createSsl(tls.ca, tls.key, tls.cert) : grpc.credentials.createInsecure();
    this.timeoutMs = timeoutMs;
    this.attempts = attempts;
    this.metadata = new grpc.Metadata();
    if (tenant) this.metadata.set('hotslot-tenant', tenant);
    if (token) this.metadata.set('authorization', `Bearer ${token}`);
  }

  /** Runs `call` with its deadline, again where that may succeed. */
  async retried(call, { timeoutMs = this.timeoutMs } = {}) {
    const deadline = Date.now() + timeoutMs;
    for (let attempt = 1; ; attempt++) {
      try {
        return await call(deadline);
      } catch (failure) {
        if (!('details' in failure)) throw failure;
        await this.pauseOrThrow(new HotslotError(failure), attempt, deadline);
      }
    }
  }

  ask(stub, method, request, deadline) {
    return new Promise((resolve, reject) => {
      stub[method](request, this.metadata, { deadline }, (failure, response) =>
        failure ? reject(failure) : resolve(response),
      );
    });
  }

  async pauseOrThrow(error, attempt, deadline) {
    const backoffMs = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
    const pauseMs = Math.max(error.retryAfterMs ?? 0, backoffMs);
    if (!error.mayRetry || attempt >= this.attempts || Date.now() + pauseMs >= deadline) throw error;
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

function load(protosDir, ...file) {
  const definition = protoLoader.loadSync(path.join('hotslot', ...file), { ...OPTIONS, includeDirs: [protosDir] });
  return grpc.loadPackageDefinition(definition).hotslot;
}

/** The store of a deployment. */
class Store extends Client {
  constructor(endpoint, { protosDir, ...options } = {}) {
    super(options);
    const { AdapterStoreService } = load(protosDir, 'store', 'v1', 'adapter_store.proto').store.v1;
    const { BlobService } = load(protosDir, 'store', 'v1', 'blob.proto').store.v1;
    this.adapters = new AdapterStoreService(endpoint, this.credentials);
    this.blobs = new BlobService(endpoint, this.credentials);
  }

  /** Sends what the store lacks of a PEFT folder, and has it admitted as `name[:tag]`: {version, created, revision, …}. */
  async push(folder, reference, { baseModel = '', annotations = {}, tags = [], ...options } = {}) {
    const content = new Map();
    const files = CHECKPOINT_FILES.map((name) => {
      const data = fs.readFileSync(path.join(folder, name));
      const digest = `sha256:${createHash('sha256').update(data).digest('hex')}`;
      content.set(digest, data);
      return { path: name, digest };
    });
    return this.retried(async (deadline) => {
      const wanted = { digests: [...content.keys()] };
      const { missing_digests: missing } = await this.ask(this.blobs, 'FindMissingBlobs', wanted, deadline);
      for (const digest of missing) await this.#upload(digest, content.get(digest), deadline);
      const version = { reference, files, base_model: baseModel, annotations, tags };
      return this.ask(this.adapters, 'CreateVersion', version, deadline);
    }, options);
  }

  close() {
    this.adapters.close();
    this.blobs.close();
  }

  /** Goes on where an earlier stream of the same bytes broke off. */
  async #upload(digest, data, deadline) {
    const { committed_size: committed } = await this.ask(this.blobs, 'GetWriteStatus', { digest }, deadline);
    await new Promise((resolve, reject) => {
      const stream = this.blobs.WriteBlob(this.metadata, { deadline }, (failure, response) =>
        failure ? reject(failure) : resolve(response),
      );
      let offset = committed;
      const send = () => {
        for (;;) {
          const end = Math.min(offset + CHUNK_BYTES, data.length);
          const finish = end === data.length;
          const message = { digest, size_bytes: data.length, offset, data: data.subarray(offset, end), finish };
          const isTaken = stream.write(message);
          offset = end;
          if (finish) return stream.end();
          if (!isTaken) return stream.once('drain', send);
        }
      };
      send();
    });
  }
}

/** One worker, or all of them behind one address. */
class Worker extends Client {
  constructor(endpoint, { protosDir, ...options } = {}) {
    super(options);
    const { InferenceService } = load(protosDir, 'worker', 'v1', 'inference.proto').worker.v1;
    this.stub = new InferenceService(endpoint, this.credentials);
  }

  /** Streams events: {started}, {chunk} …, {finished}. Leaving the loop cancels the request. */
  async *generate(request, { timeoutMs = this.timeoutMs, signal } = {}) {
    const deadline = Date.now() + timeoutMs;
    for (let attempt = 1; ; attempt++) {
      let begun = false;
      const call = this.stub.Generate(request, this.metadata, { deadline });
      const cancel = () => call.cancel();
      signal?.addEventListener('abort', cancel);
      try {
        for await (const response of call) {
          begun = true;
          yield { [response.event]: response[response.event] };
        }
        return;
      } catch (failure) {
        const error = new HotslotError(failure);
        // After the first event a second run could answer something else.
        if (begun) throw error;
        await this.pauseOrThrow(error, attempt, deadline);
      } finally {
        signal?.removeEventListener('abort', cancel);
        call.cancel();
      }
    }
  }

  /** The whole answer: {started, choices: [{text, token_ids, logprobs, finished}]}. */
  complete(request, options) {
    return this.retried((deadline) => this.ask(this.stub, 'Complete', { request }, deadline), options);
  }

  /** Tokens of a text or a chat, as a prompt has them. */
  countTokens(request, options) {
    return this.retried((deadline) => this.ask(this.stub, 'CountTokens', request, deadline), options);
  }

  close() {
    this.stub.close();
  }
}

module.exports = { HotslotError, Store, Worker };
