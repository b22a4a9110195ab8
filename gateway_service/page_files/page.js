// Beginning of the page: it reads the state every other second while someone looks, and asks for a key where one is needed.

import { call, use } from './calls.js';
import { filterChanged, heldNames, show } from './fleet.js';
import { byId } from './nodes.js';
import { offer, run, stop } from './trial.js';

const EVERY_MS = 2000;
const SLOWEST_MS = 15_000;
const MODELS_EVERY_MS = 30_000;

let failures = 0;
let lastMs = 0;
let modelsMs = -Infinity;
let timer = 0;
let isAsking = false;

async function look() {
  clearTimeout(timer);
  let nextMs = EVERY_MS;
  try {
    const state = await (await call('ui/state')).json();
    show(state);
    if (performance.now() - modelsMs > MODELS_EVERY_MS) {
      modelsMs = performance.now();
      const models = await (await call('v1/models')).json();
      offer(models.data, heldNames(state));
    }
    failures = 0;
    lastMs = performance.now();
    pulse('live', 'live');
  } catch (failure) {
    failures += 1;
    modelsMs = -Infinity;
    nextMs = Math.max(1000 * (failure.retryAfterS ?? 0), Math.min(SLOWEST_MS, EVERY_MS * 2 ** failures));
    const ago = lastMs ? `no news for ${Math.round((performance.now() - lastMs) / 1000)} s: ` : '';
    pulse('away', ago + (failure.status ? failure.message : 'the gateway does not answer'));
    if (failure.status === 401 || failure.status === 403) {
      askForKey(failure);
      return;
    }
  }
  if (!document.hidden) timer = setTimeout(look, nextMs);
}

function pulse(kind, text) {
  byId('pulse').className = `pulse ${kind}`;
  if (byId('pulse').textContent !== text) byId('pulse').textContent = text;
}

function askForKey(failure) {
  if (isAsking) return;
  isAsking = true;
  byId('key-why').textContent = failure
    ? `The gateway says: ${failure.message}`
    : "It is kept in this page's memory alone, and is gone when the page is.";
  byId('key-dialog').showModal();
  byId('key').focus();
}

function useKey(key, tenant) {
  use(key, tenant);
  modelsMs = -Infinity;
  look();
}

byId('open-key').addEventListener('click', () => askForKey());
byId('key-dialog').addEventListener('close', () => { isAsking = false; });
byId('key-form').addEventListener('submit', () => {
  const [key, tenant] = [byId('key').value.trim(), byId('tenant').value.trim()];
  byId('key').value = '';
  useKey(key, tenant);
});
byId('forget-key').addEventListener('click', () => {
  byId('key-form').reset();
  byId('key-dialog').close();
  useKey('', '');
});

byId('filter').addEventListener('input', filterChanged);
for (const column of ['first', 'second']) {
  byId(`model-${column}`).addEventListener('input', (event) => { event.target.dataset.touched = 'yes'; });
}
byId('trial-form').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!byId('run').disabled) run(askForKey);
});
byId('stop').addEventListener('click', stop);
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !byId('key-dialog').open) stop();
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && byId('trial-form').contains(event.target)) {
    event.preventDefault();
    byId('trial-form').requestSubmit();
  }
});
// A page that is left, or kept for the way back, generates nothing.
addEventListener('pagehide', stop);
document.addEventListener('visibilitychange', () => { if (!document.hidden) look(); });

look();
