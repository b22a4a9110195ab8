// A client of hotslot's workers, made of the protos alone: streams, whole answers, typed errors, deadlines, retries.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const OPTIONS = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 2_000;

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

/** One worker, or all of them behind one address. */
class Worker {
  constructor(endpoint, { protosDir, tenant = 'default', timeoutMs = 600_000, attempts = 4 } = {}) {
    const file = path.join('hotslot', 'worker', 'v1', 'inference.proto');
    const definition = protoLoader.loadSync(file, { ...OPTIONS, includeDirs: [protosDir] });
    const { InferenceService } = grpc.loadPackageDefinition(definition).hotslot.worker.v1;
    this.stub = new InferenceService(endpoint, grpc.credentials.createInsecure());
    this.timeoutMs = timeoutMs;
    this.attempts = attempts;
    this.metadata = new grpc.Metadata();
    this.metadata.set('hotslot-tenant', tenant);
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
        await this.#pauseOrThrow(error, attempt, deadline);
      } finally {
        signal?.removeEventListener('abort', cancel);
        call.cancel();
      }
    }
  }

  /** The whole answer: {started, choices: [{text, token_ids, logprobs, finished}]}. */
  complete(request, options) {
    return this.#unary('Complete', { request }, options);
  }

  /** Tokens of a text or a chat, as a prompt has them. */
  countTokens(request, options) {
    return this.#unary('CountTokens', request, options);
  }

  close() {
    this.stub.close();
  }

  async #unary(method, request, { timeoutMs = this.timeoutMs } = {}) {
    const deadline = Date.now() + timeoutMs;
    for (let attempt = 1; ; attempt++) {
      try {
        return await new Promise((resolve, reject) => {
          this.stub[method](request, this.metadata, { deadline }, (failure, response) =>
            failure ? reject(failure) : resolve(response),
          );
        });
      } catch (failure) {
        await this.#pauseOrThrow(new HotslotError(failure), attempt, deadline);
      }
    }
  }

  async #pauseOrThrow(error, attempt, deadline) {
    const backoffMs = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
    const pauseMs = Math.max(error.retryAfterMs ?? 0, backoffMs);
    if (!error.mayRetry || attempt >= this.attempts || Date.now() + pauseMs >= deadline) throw error;
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

module.exports = { HotslotError, Worker };
