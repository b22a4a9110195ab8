// Calls of the gateway. The key is kept in this module's memory alone: not in storage, not in a cookie, not in an address.

let key = '';
let tenant = '';

/** Use another key and tenant from now on. */
export function use(newKey, newTenant) {
  key = newKey;
  tenant = newTenant;
}

/** A refusal or failure, with the gateway's own words. */
export class CallError extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** Call a path; throws CallError for what is not answered with 200. */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (tenant) headers['hotslot-tenant'] = tenant;
  if (body) headers['content-type'] = 'application/json';
  const response = await fetch(path, {
    method: body ? 'POST' : 'GET',
    headers,
    body: body && JSON.stringify(body),
    signal,
    cache: 'no-store',
    credentials: 'omit',
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const retryAfterS = Number(response.headers.get('retry-after')) || 0;
  throw new CallError(response.status, told.error?.message ?? `the gateway answered ${response.status}`, retryAfterS);
}

/** The documents of a stream of server-sent events, until `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error('the stream broke off');
      pending += value;
      const parts = pending.split('\n\n');
      pending = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, '');
        if (data === '[DONE]') return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
