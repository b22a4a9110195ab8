// A prompt answered by the base model and two adapters side by side, as the tokens come.

import { call, CallError, events } from './calls.js';
import { byId, make } from './nodes.js';

const COLUMNS = ['base', 'first', 'second'];
let running = null;

/** End whatever is being generated: closing the streams cancels it on the workers. */
export function stop() {
  running?.abort();
  running = null;
  byId('stop').disabled = true;
}

/** Offer models: base models to choose from, and adapters to name. */
export function offer(models, heldFirst) {
  const bases = models.filter((model) => model.parent === null).map((model) => model.id);
  const adapters = models.filter((model) => model.parent !== null).map((model) => model.id);
  const select = byId('model-base');
  const chosen = select.value;
  select.replaceChildren(...bases.map((id) => make('option', { value: id }, id)));
  if (bases.includes(chosen)) select.value = chosen;
  byId('run').disabled = !models.length;
  byId('models').replaceChildren(...adapters.map((id) => make('option', { value: id })));
  const likely = [...heldFirst.filter((name) => adapters.includes(name)), ...adapters];
  const distinct = [...new Set(likely)];
  for (const [index, column] of ['first', 'second'].entries()) {
    const input = byId(`model-${column}`);
    if (!input.value && !input.dataset.touched) input.value = distinct[index] ?? '';
  }
}

/** Answer the prompt in every column that names a model; `refused` hears of a key that is missing or not enough. */
export async function run(refused) {
  stop();
  running = new AbortController();
  const { signal } = running;
  byId('stop').disabled = false;
  const wanted = {
    kind: byId('kind').value,
    prompt: byId('prompt').value,
    temperature: Number(byId('temperature').value),
    maxTokens: Number(byId('max-tokens').value),
  };
  await Promise.all(COLUMNS.map((column) => answer(column, wanted, signal, refused)));
  if (running?.signal === signal) stop();
}

async function answer(column, wanted, signal, refused) {
  const article = document.querySelector(`[data-column="${column}"]`);
  const [text, facts] = [article.querySelector('.text'), article.querySelector('.facts')];
  const model = byId(`model-${column}`).value.trim();
  text.classList.remove('failed');
  text.textContent = '';
  facts.textContent = '';
  if (!model) return;
  article.classList.add('running');
  const told = { beganMs: performance.now(), firstMs: 0, tokens: 0, ended: '', served: '' };
  try {
    for await (const piece of pieces(model, wanted, signal, told)) {
      text.append(piece);
      text.scrollTop = text.scrollHeight;
    }
  } catch (failure) {
    if (signal.aborted) told.ended = 'stopped';
    else {
      text.classList.add('failed');
      text.append(text.textContent ? '\n' : '', failure.message);
      if (failure instanceof CallError && [401, 403].includes(failure.status)) refused(failure);
    }
  } finally {
    article.classList.remove('running');
    facts.textContent = factsOf(told);
  }
}

async function* pieces(model, wanted, signal, told) {
  const isChat = wanted.kind === 'chat';
  const response = await call(isChat ? 'v1/chat/completions' : 'v1/completions', {
    body: {
      model,
      ...(isChat ? { messages: [{ role: 'user', content: wanted.prompt }] } : { prompt: wanted.prompt }),
      temperature: wanted.temperature,
      max_tokens: wanted.maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    },
    signal,
  });
  told.served = response.headers.get('hotslot-adapters') ?? '';
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    told.tokens = event.usage?.completion_tokens ?? told.tokens;
    const choice = event.choices[0];
    const piece = (isChat ? choice?.delta.content : choice?.text) ?? '';
    if (piece) {
      told.firstMs ||= performance.now();
      told.lastMs = performance.now();
      yield piece;
    }
    told.ended = choice?.finish_reason ?? told.ended;
  }
}

function factsOf(told) {
  const facts = [];
  if (told.firstMs) facts.push(`first token ${Math.round(told.firstMs - told.beganMs)} ms`);
  if (told.tokens > 1 && told.lastMs > told.firstMs) {
    facts.push(`${(((told.tokens - 1) * 1000) / (told.lastMs - told.firstMs)).toFixed(1)} tokens/s`);
  }
  if (told.ended === 'length') facts.push('cut at the limit');
  if (told.ended === 'stopped') facts.push('stopped');
  const digest = /@sha256:([0-9a-f]{8})/.exec(told.served);
  if (digest) facts.push(`version ${digest[1]}`);
  return facts.join(' · ');
}
