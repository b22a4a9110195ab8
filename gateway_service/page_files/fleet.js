// The live state: figures of the whole, a card for each worker, and a table of adapters by workers.

import { byId, fill, make } from './nodes.js';

const TIERS = { slot: 'in slots', host: 'in memory', disk: 'on disk', loading: 'on its way' };
const ORDER = ['slot', 'loading', 'host', 'disk'];
const MAX_ROWS = 200;
const MAX_SLOT_MARKS = 64;

const shortId = (id) => (id.length > 10 ? `${id.slice(0, 8)}…` : id);
const shortDigest = (digest) => digest.replace(/^sha256:/, '').slice(0, 8);
const percent = (share) => `${Math.round(share * 100)} %`;

let before = null;
let shown = null;

/** Tokens a second of each worker since an earlier state, by its id; none for one that is new or counts anew. */
export function rates(earlier, state) {
  const found = new Map();
  if (!earlier) return found;
  const seconds = (new Date(state.time) - new Date(earlier.time)) / 1000;
  const counted = new Map(earlier.workers.map((worker) => [worker.worker_id, worker.generated_tokens]));
  for (const worker of state.workers) {
    const tokens = worker.generated_tokens - (counted.get(worker.worker_id) ?? NaN);
    if (worker.generated_tokens !== null && tokens >= 0 && seconds > 0) found.set(worker.worker_id, tokens / seconds);
  }
  return found;
}

/** Show a state. */
export function show(state) {
  const perS = rates(before, state);
  // Pages of one caller share a look: the same one again says nothing of rates.
  if (before?.time !== state.time) before = state;
  else if (shown) return;
  shown = state;
  const store = state.store_version ? ` · store ${state.store_version}` : '';
  byId('releases').textContent = `gateway ${state.version}${store}`;
  const problems = state.problems.map((text) => make('li', {}, text));
  fill(byId('problems'), JSON.stringify(state.problems), problems);
  byId('figures').replaceChildren(...figures(state, perS));
  showWorkers(state, perS);
  showHeld(state);
}

/** Show the adapters again, for another filter. */
export function filterChanged() {
  if (shown) showHeld(shown);
}

/** Names of adapters that some worker holds, those in faster tiers first. */
export function heldNames(state) {
  const held = [...state.held].sort((a, b) => ORDER.indexOf(a.tier) - ORDER.indexOf(b.tier));
  return [...new Set(held.map((one) => one.adapter))];
}

function figures(state, perS) {
  const sum = (name) => state.workers.reduce((total, worker) => total + worker[name], 0);
  const ready = state.workers.filter((worker) => worker.state === 'ready').length;
  const tokens = [...perS.values()].reduce((total, rate) => total + rate, 0);
  const rows = [
    ['Workers ready', ready, `of ${state.num_workers}`],
    ['Sequences running', sum('running'), `of ${sum('max_running')}`],
    ['Waiting', sum('waiting') + sum('loading'), sum('loading') ? `${sum('loading')} for adapters` : ''],
    ['Slots taken', sum('num_slots') - sum('free_slots'), `of ${sum('num_slots')}`],
    ['Adapters held', new Set(state.held.map((one) => one.digest)).size, ''],
    ['Tokens a second', perS.size ? Math.round(tokens) : '–', ''],
  ];
  return rows.map(([name, value, note]) =>
    make('div', {}, make('dt', {}, name), make('dd', {}, String(value), ' ', make('small', {}, note))),
  );
}

function showWorkers(state, perS) {
  const list = byId('workers');
  const cards = new Map([...list.children].map((card) => [card.dataset.worker, card]));
  const wanted = state.workers.map((worker) => {
    const card = cards.get(worker.worker_id) ?? make('li', { class: 'worker', 'data-worker': worker.worker_id });
    fill(card, JSON.stringify([worker, perS.get(worker.worker_id)]), cardOf(worker, perS.get(worker.worker_id)));
    return card;
  });
  if (wanted.length !== list.children.length || wanted.some((card, index) => list.children[index] !== card)) {
    list.replaceChildren(...wanted);
  }
  const more = byId('more-workers');
  more.hidden = state.num_workers <= state.workers.length;
  more.textContent = `${state.num_workers - state.workers.length} more workers are not shown.`;
}

function cardOf(worker, perS) {
  const about = [worker.base_model, worker.dtype, worker.version, since(worker.start_time)].filter(Boolean).join(' · ');
  const taken = worker.num_slots - worker.free_slots;
  const waiting = worker.loading ? `${worker.waiting} + ${worker.loading} for adapters` : String(worker.waiting);
  const parts = [
    make('header', {}, make('h3', { title: worker.worker_id }, shortId(worker.worker_id)),
      make('span', { class: `chip ${worker.state}` }, worker.state)),
    make('p', { class: 'about' }, about),
  ];
  if (worker.reasons.length) {
    parts.push(make('ul', { class: 'reasons' }, ...worker.reasons.map((text) => make('li', {}, text))));
  }
  parts.push(make('dl', { class: 'gauges' },
    ...gauge('Running', bar(worker.running, worker.max_running), `${worker.running} of ${worker.max_running}`),
    ...gauge('Waiting', bar(worker.waiting, worker.max_running), waiting),
    ...gauge('KV cache', bar(worker.kv_usage, 1), percent(worker.kv_usage)),
    ...gauge('Slots', slotMarks(taken, worker.num_slots), `${taken} of ${worker.num_slots}`),
    ...gauge('Tokens/s', make('span'), perS === undefined ? '–' : String(Math.round(perS)))));
  return parts;
}

function gauge(name, picture, number) {
  return [make('dt', {}, name), make('dd', { 'aria-hidden': 'true' }, picture), make('dd', { class: 'number' }, number)];
}

function bar(value, most) {
  const fillOf = make('i');
  fillOf.style.setProperty('--share', String(most ? Math.min(1, value / most) : 0));
  return make('div', { class: 'bar' }, fillOf);
}

function slotMarks(taken, all) {
  if (all > MAX_SLOT_MARKS) return bar(taken, all);
  return make('div', { class: 'slots' }, ...Array.from({ length: all }, (_, i) => make('i', { class: i < taken ? 'taken' : '' })));
}

function since(time) {
  if (!time) return '';
  const seconds = Math.max(0, (Date.now() - new Date(time)) / 1000);
  if (seconds < 90) return `up ${Math.round(seconds)} s`;
  if (seconds < 5400) return `up ${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `up ${Math.round(seconds / 3600)} h` : `up ${Math.round(seconds / 86400)} d`;
}

function showHeld(state) {
  const wanted = byId('filter').value.trim().toLowerCase();
  const signature = JSON.stringify([wanted, state.held, state.workers.map((worker) => worker.worker_id)]);
  const rows = new Map();
  for (const one of state.held) {
    const row = rows.get(one.digest + one.adapter) ?? { adapter: one.adapter, digest: one.digest, on: new Map() };
    row.on.set(one.worker_id, one);
    rows.set(one.digest + one.adapter, row);
  }
  const all = [...rows.values()].sort((a, b) => a.adapter.localeCompare(b.adapter));
  const found = all.filter((row) => `${row.adapter} ${row.digest}`.toLowerCase().includes(wanted));
  const workers = state.workers.map((worker) => worker.worker_id);
  fill(byId('held-head'), JSON.stringify(workers), [
    make('tr', {}, make('th', { scope: 'col' }, 'Adapter'),
      ...workers.map((id) => make('th', { scope: 'col', title: id }, shortId(id)))),
  ]);
  const body = found.slice(0, MAX_ROWS).map((row) => make('tr', {},
    make('th', { scope: 'row', title: `${row.adapter}@${row.digest}` }, row.adapter, make('small', {}, shortDigest(row.digest))),
    ...workers.map((id) => cell(row.on.get(id)))));
  const nothing = all.length ? 'No adapter has such a name.' : 'No adapter has been used here yet.';
  fill(byId('held-body'), signature,
    body.length ? body : [make('tr', {}, make('td', { class: 'none', colspan: String(workers.length + 1) }, nothing))]);
  const left = found.length - body.length + (state.num_held - state.held.length);
  byId('more-held').hidden = left <= 0;
  byId('more-held').textContent = `${left} more are not shown; filter by name.`;
}

function cell(held) {
  const tier = TIERS[held?.tier];
  if (!tier) return make('td', {}, make('span', { class: 'hidden' }, 'not there'));
  const words = [tier, held.pinned && 'pinned', held.users && `${held.users} requests`].filter(Boolean).join(', ');
  const parts = [make('span', { class: `tier ${held.tier}`, 'aria-hidden': 'true' }), make('span', { class: 'hidden' }, words)];
  if (held.pinned) parts.push(make('span', { class: 'pin', 'aria-hidden': 'true' }, 'pinned'));
  if (held.users) parts.push(make('span', { class: 'users', 'aria-hidden': 'true' }, `×${held.users}`));
  return make('td', { title: words }, ...parts);
}
