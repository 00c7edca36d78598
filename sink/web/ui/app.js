// The page: state in the address, what is loaded when, and the parts put together. Each part draws itself; see chart.js,
// filter.js, table.js. The flame graph is the one that stoker's HTML files have too (window.stokerFlamegraph).
import { el, setUTC, isUTC, cores, percent, signedPercent, cpuTime, duration, bytes, count, moment, dateTime, span, readTime } from './format.js';
import { get, request, setToken, hasToken, APIError } from './api.js';
import { Chart, sparkline } from './chart.js';
import { Filter } from './filter.js';
import { Table, matcher } from './table.js';

const $ = (id) => document.getElementById(id);
const PRESETS = [['now-5m', '5 minutes'], ['now-15m', '15 minutes'], ['now-1h', 'hour'], ['now-6h', '6 hours'], ['now-24h', '24 hours'], ['now-3d', '3 days']];
const DEFAULTS = { from: 'now-15m', to: 'now', container: '', match: [], view: 'flame', sel: null, a: null, b: null, ac: '', bc: '', q: '', refresh: 10, side: false };
const FORMATS = [['pprof', 'pprof', 'go tool pprof, Pyroscope, PGO', 'pb.gz'], ['html', 'Flame graph, HTML', 'one file, works offline', 'html'],
  ['svg', 'Flame graph, SVG', 'for documents', 'svg'], ['speedscope', 'speedscope', 'JSON for speedscope', 'speedscope.json'],
  ['folded', 'Folded stacks', 'for flamegraph.pl and friends', 'folded'], ['text', 'Text', 'a table', 'txt']];

// ---- state -----------------------------------------------------------------------------------------------------------

let state = readHash();
let overview = { containers: [], series: [], from: 0, to: 0, start: 0, step: 10000, loaded: false };
let profile = null; // the last answer of /api/v1/profile, with the key it was loaded for
let diff = null;
let health = null;

function readHash() {
  const q = new URLSearchParams(location.hash.slice(1));
  const range = (k) => {
    const m = /^(\d+)-(\d+)$/.exec(q.get(k) || '');
    return m && +m[1] < +m[2] ? { from: +m[1], to: +m[2] } : null;
  };
  return {
    from: q.get('from') || DEFAULTS.from, to: q.get('to') || DEFAULTS.to, container: q.get('c') || '', match: q.getAll('m'),
    view: ['flame', 'top', 'compare'].includes(q.get('view')) ? q.get('view') : DEFAULTS.view,
    sel: range('sel'), a: range('a'), b: range('b'), ac: q.get('ac') || '', bc: q.get('bc') || '', q: q.get('q') || '',
    refresh: q.has('refresh') ? Math.max(0, parseInt(q.get('refresh'), 10) || 0) : DEFAULTS.refresh, side: q.get('side') === '1',
  };
}

function writeHash(s) {
  const q = new URLSearchParams();
  const put = (k, v, d) => { if (v && v !== d) q.set(k, v); };
  const range = (k, r) => { if (r) q.set(k, `${r.from}-${r.to}`); };
  put('from', s.from, DEFAULTS.from); put('to', s.to, DEFAULTS.to); put('c', s.container);
  for (const m of s.match) q.append('m', m);
  put('view', s.view, DEFAULTS.view); range('sel', s.sel); range('a', s.a); range('b', s.b);
  put('ac', s.ac); put('bc', s.bc); put('q', s.q);
  if (s.refresh !== DEFAULTS.refresh) q.set('refresh', s.refresh);
  if (s.side) q.set('side', '1');
  return '#' + q.toString();
}

/** Changes the state, the address, and whatever depends on it. quiet: no entry of its own in the history. */
function setState(patch, { quiet = false } = {}) {
  const old = state;
  state = { ...state, ...patch };
  const hash = writeHash(state);
  if (hash !== location.hash) history[quiet ? 'replaceState' : 'pushState'](null, '', hash || '#');
  apply(old);
}

window.addEventListener('popstate', () => { const old = state; state = readHash(); apply(old); });

function apply(old) {
  drawControls();
  const overviewChanged = old.from !== state.from || old.to !== state.to || String(old.match) !== String(state.match);
  if (overviewChanged) return refresh();
  drawOverview();
  drawMain();
}

// ---- loading ---------------------------------------------------------------------------------------------------------

let loads = 0;
function busy(d) {
  loads += d;
  document.body.classList.toggle('loading', loads > 0);
  $('view').setAttribute('aria-busy', String(loads > 0));
}

let failures = new Map(); // channel → error: a banner for what does not work now, gone when it works again
async function load(channel, f) {
  busy(1);
  try {
    await f();
    failures.delete(channel);
  } catch (err) {
    if (err.name === 'AbortError') return;
    failures.set(channel, err);
    if (!(err instanceof APIError)) console.error(err);
    if (err.status === 401) askToken();
  } finally {
    busy(-1);
    drawBanner();
  }
}

const rangeParams = () => [['from', state.from], ['to', state.to]];
const matchParams = () => state.match.map((m) => ['match', m]);

async function refresh() {
  await Promise.all([
    load('health', async () => {
      health = await get('/healthz', null, { channel: 'health' });
      drawStatus();
      if (shown.startsWith('empty')) drawEmpty(); // what the store holds is said there
    }),
    load('overview', async () => {
      const [series, containers, labels] = await Promise.all([
        get('/api/v1/series', [...rangeParams(), ...matchParams()], { channel: 'series' }),
        get('/api/v1/containers', null, { channel: 'containers' }),
        get('/api/v1/labels', rangeParams(), { channel: 'labels' }),
      ]);
      overview = merge(series, containers);
      filter.setLabels(labels.labels);
      drawOverview();
      await drawMain();
    }),
  ]);
}

const COLORS = 10; // --s0 … --s9 in app.css; the rest shares --s-rest

/** One list out of what runs now and what the store has; containers of the store that are gone keep their series. */
function merge(answer, containers) {
  const byID = new Map();
  const rows = [];
  for (const s of answer.series) {
    const row = byID.get(s.container_id || s.name) || { id: s.container_id, name: s.name, labels: s.labels, values: [], cores: 0, info: null };
    if (!byID.has(s.container_id || s.name)) { byID.set(s.container_id || s.name, row); rows.push(row); }
    s.cores.forEach((v, i) => { row.values[i] = (row.values[i] || 0) + v; });
  }
  for (const c of containers) {
    let row = byID.get(c.id);
    if (!row) {
      if (state.match.length) continue; // whether it would match is for the store to say, and it has nothing of it
      row = { id: c.id, name: '', labels: {}, values: [], cores: 0 };
      rows.push(row);
    }
    row.info = c;
    row.name = nameOf(c) || row.name;
  }
  const n = Math.max(1, answer.complete);
  for (const r of rows) {
    r.values.length = n; // what has only begun would look like a fall
    for (let i = 0; i < n; i++) r.values[i] ||= 0;
    r.cores = r.values.reduce((a, b) => a + b, 0) / n;
    r.name ||= (r.id || '').slice(0, 12) || 'unnamed';
  }
  rows.sort((a, b) => b.cores - a.cores || (a.name < b.name ? -1 : 1));
  // A colour stays with its container while the list is refreshed and reordered.
  const used = new Set();
  for (const r of rows) if (colorOf.has(r.id)) used.add(colorOf.get(r.id));
  for (const r of rows) {
    if (colorOf.has(r.id)) continue;
    for (let i = 0; i < COLORS; i++) if (!used.has(i)) { colorOf.set(r.id, i); used.add(i); break; }
  }
  return { rows, from: answer.from_ms, to: answer.to_ms, start: answer.start_ms, step: answer.step_ms, loaded: true, bins: n };
}

const colorOf = new Map();
function color(id) {
  const i = colorOf.get(id);
  return getComputedStyle(document.documentElement).getPropertyValue(i === undefined ? '--s-rest' : '--s' + i).trim();
}

function nameOf(c) {
  if (c.pod) return c.pod.namespace + '/' + (c.kubernetes_container || c.name);
  return c.name || c.service || c.systemd_unit || c.id.slice(0, 12);
}

function rowOf(id) { return overview.rows?.find((r) => r.id === id); }

/** The range of the flame graph: the brush, or else all that the chart shows. */
function effectiveRange() { return state.sel || { from: overview.from, to: overview.to }; }

function profileParams(range = effectiveRange()) {
  const p = [['from', range.from], ['to', range.to], ...matchParams()];
  if (state.container) p.push(['container', state.container]);
  return p;
}

// ---- controls --------------------------------------------------------------------------------------------------------

const tooltip = {
  show(x, y, children) {
    const t = $('tooltip');
    t.replaceChildren(...children.filter(Boolean));
    t.hidden = false;
    const w = t.offsetWidth, h = t.offsetHeight;
    t.style.left = Math.max(4, x + 14 + w > innerWidth ? x - w - 14 : x + 14) + 'px';
    t.style.top = Math.min(innerHeight - h - 4, Math.max(4, y + 12)) + 'px';
  },
  hide() { $('tooltip').hidden = true; },
};

const chart = new Chart($('chart'), {
  tooltip,
  onSelect(from, to, which) {
    if (which === 'sel') { if (from !== null || state.sel) setState({ sel: from === null ? null : { from, to } }); return; }
    if (from === null) return;
    setState({ [which]: { from, to } });
    compareActive = which === 'a' ? 'b' : 'a'; // the other one is next
    drawOverview();
    drawMain();
  },
});

const filter = new Filter({ root: $('filter'), input: $('filter-input'), list: $('filter-list'), chips: $('chips') },
  (match) => setState({ match, sel: state.sel }));

function drawControls() {
  filter.set(state.match);
  const preset = PRESETS.find(([f]) => f === state.from && state.to === 'now');
  $('range-text').textContent = preset ? 'Last ' + preset[1] : rangeText();
  for (const b of $('presets').children) b.setAttribute('aria-pressed', String(Boolean(preset) && b.dataset.from === state.from));
  $('refresh-every').value = String(state.refresh);
  if (document.activeElement !== $('search')) $('search').value = state.q;
  for (const t of document.querySelectorAll('[role=tab]')) {
    t.setAttribute('aria-selected', String(t.dataset.view === state.view));
    t.tabIndex = t.dataset.view === state.view ? 0 : -1;
  }
  $('view').setAttribute('aria-labelledby', 'tab-' + state.view);
  const formats = state.view === 'compare' ? FORMATS.filter(([f]) => f === 'html' || f === 'pprof') : FORMATS;
  $('download-list').replaceChildren(...formats.map(([format, title, hint, ext]) => el('button', { type: 'button', class: 'item', onclick: () => download(format, ext) },
    el('span', {}, title), el('small', {}, hint))));
  $('utc').textContent = isUTC() ? 'Times in UTC' : 'Local time';
  $('utc').title = isUTC() ? 'Show local time' : 'Show UTC';
}

function rangeText() {
  const m = /^now-(\S+)$/.exec(state.from);
  if (m && state.to === 'now') return 'Last ' + m[1];
  const show = (t) => /^\d+$/.test(t) ? dateTime(+t) : t;
  if (/^\d+$/.test(state.from) && /^\d+$/.test(state.to)) return span(+state.from, +state.to);
  return show(state.from) + ' – ' + show(state.to);
}

function closeMenus(except) { for (const d of document.querySelectorAll('details.menu[open]')) if (d !== except) d.open = false; }

function wire() {
  $('presets').replaceChildren(...PRESETS.map(([from, text]) => el('button', { type: 'button', class: 'preset', data: { from },
    onclick: () => { closeMenus(); setState({ from, to: 'now', sel: null, a: null, b: null }); } }, text === 'hour' ? '1 hour' : text)));
  $('range-menu').addEventListener('toggle', () => {
    if (!$('range-menu').open) return;
    const show = (t, ms) => /^\d+$/.test(t) ? dateTime(+t) : t || dateTime(ms);
    $('range-from').value = show(state.from, overview.from);
    $('range-to').value = show(state.to, overview.to);
  });
  $('range-form').addEventListener('submit', (e) => {
    e.preventDefault();
    closeMenus();
    setState({ from: readTime($('range-from').value) || DEFAULTS.from, to: readTime($('range-to').value) || 'now', sel: null, a: null, b: null });
  });
  $('refresh').addEventListener('click', () => { profile = diff = null; refresh(); });
  $('refresh-every').addEventListener('change', (e) => setState({ refresh: +e.target.value }, { quiet: true }));
  $('theme').addEventListener('click', () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    document.documentElement.dataset.theme = dark ? 'light' : 'dark';
    try { localStorage.setItem('stoker-theme', dark ? 'light' : 'dark'); } catch { /* then it lasts for this page */ }
    drawOverview();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawOverview);
  $('utc').addEventListener('click', () => {
    setUTC(!isUTC());
    try { localStorage.setItem('stoker-utc', isUTC() ? '1' : ''); } catch { /* then it lasts for this page */ }
    drawControls(); drawOverview(); drawMain();
  });
  const tabs = [...document.querySelectorAll('[role=tab]')];
  tabs.forEach((t, i) => {
    t.addEventListener('click', () => setState({ view: t.dataset.view }));
    t.addEventListener('keydown', (e) => {
      const d = e.key === 'ArrowRight' ? 1 : e.key === 'ArrowLeft' ? -1 : 0;
      if (!d) return;
      const next = tabs[(i + d + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  });
  $('search').addEventListener('input', (e) => { state.q = e.target.value; history.replaceState(null, '', writeHash(state)); search(); });
  $('container-search').addEventListener('input', drawContainers);
  $('deep').addEventListener('click', (e) => { if (hasToken()) { e.preventDefault(); openDeep(); } });
  document.addEventListener('click', (e) => closeMenus(e.target.closest('details.menu')));
  document.addEventListener('keydown', (e) => {
    if (e.key === 'Escape') {
      const open = document.querySelector('details.menu[open]');
      if (open) { open.open = false; open.querySelector('summary').focus(); }
    }
    if (e.ctrlKey || e.metaKey || e.altKey || /^(input|textarea|select)$/i.test(e.target.tagName)) return;
    if (e.key === '/') { e.preventDefault(); e.stopImmediatePropagation(); $('search').focus(); $('search').select(); }
    if (e.key === 'r') refresh();
  }, true);
  $('containers').addEventListener('keydown', (e) => {
    if (e.key !== 'ArrowDown' && e.key !== 'ArrowUp') return;
    e.preventDefault();
    const items = [...$('containers').querySelectorAll('[role=option]')];
    const i = items.findIndex((x) => x.getAttribute('aria-selected') === 'true');
    const next = items[Math.min(items.length - 1, Math.max(0, i + (e.key === 'ArrowDown' ? 1 : -1)))];
    if (next) setState({ container: next.dataset.id, sel: state.sel }, { quiet: true });
  });
  let last = Date.now();
  setInterval(() => {
    if (!state.refresh || document.hidden || loads > 0 || chart.dragging || document.querySelector('dialog[open]')) return;
    // The longer the range, the more a refresh costs the node and the less it shows.
    const every = Math.max(state.refresh * 1000, (overview.to - overview.from) / 90 || 0);
    if (Date.now() - last < every) return;
    last = Date.now();
    if (state.to === 'now') refresh();
  }, 1000);
}

// ---- overview --------------------------------------------------------------------------------------------------------

let compareActive = 'a';

function drawOverview() {
  if (!overview.loaded) return;
  const rows = overview.rows;
  const chosen = state.container && state.view !== 'compare' ? rowOf(state.container) : null;
  const drawn = rows.filter((r) => r.cores > 0).map((r) => ({ name: r.name, color: color(r.id), values: r.values, faint: Boolean(chosen) && r !== chosen }));
  // The chosen one stands on the axis, so that its height can be read.
  if (chosen) drawn.sort((a, b) => a.faint - b.faint);
  chart.set({ from: overview.from, to: overview.to, start: overview.start, step: overview.step, series: drawn });
  if (state.view === 'compare') chart.setBrushes([{ which: 'a', ...rangeA() }, { which: 'b', ...rangeB() }], compareActive);
  else chart.setBrushes(state.sel ? [{ which: 'sel', ...state.sel }] : [], 'sel');

  $('chart-title').textContent = chosen ? 'CPU of ' + chosen.name : state.match.length ? 'CPU of the filtered containers' : 'CPU of all containers';
  const r = effectiveRange();
  const inRange = (i) => overview.start + i * overview.step < r.to && overview.start + (i + 1) * overview.step > r.from;
  const of = chosen ? [chosen] : rows;
  let sum = 0, n = 0;
  for (let i = 0; i < overview.bins; i++) if (inRange(i)) { n++; for (const x of of) sum += x.values[i] || 0; }
  $('chart-figure').textContent = n ? cores(sum / n) : '–';
  $('selection').replaceChildren(...(state.view === 'compare'
    ? [el('span', { class: 'hint' }, 'Drag to set ', el('b', { class: 'which-' + compareActive }, compareActive.toUpperCase()))]
    : state.sel
      ? [el('span', {}, `${span(state.sel.from, state.sel.to)} (${duration(state.sel.to - state.sel.from)})`),
        el('button', { type: 'button', class: 'button small', onclick: () => setState({ from: String(state.sel.from), to: String(state.sel.to), sel: null }) }, 'Zoom in'),
        el('button', { type: 'button', class: 'button small', onclick: () => setState({ sel: null }) }, 'Clear')]
      : [el('span', { class: 'hint' }, rows.some((x) => x.cores > 0) ? 'Drag to select a range' : '')]));

  const none = !drawn.length;
  chart.empty.hidden = !none;
  if (none) chart.empty.textContent = state.match.length ? 'Nothing matches the filter in this range.' : 'Nothing was sampled in this range.';
  drawContainers();
  drawStatus();
}

function drawContainers() {
  if (!overview.loaded) return;
  const list = $('containers'), find = $('container-search').value.trim().toLowerCase();
  const rows = overview.rows.filter((r) => !find || r.name.toLowerCase().includes(find) || (r.info?.image || '').toLowerCase().includes(find) || r.id?.startsWith(find));
  const total = overview.rows.reduce((a, r) => a + r.cores, 0);
  $('container-count').textContent = String(overview.rows.length);
  if (!overview.rows.length) {
    list.replaceChildren(state.match.length
      ? el('div', { class: 'empty' }, el('p', {}, 'No container matches the filter.'), el('button', { type: 'button', class: 'button', onclick: () => setState({ match: [] }) }, 'Clear the filter'))
      : el('div', { class: 'empty' }, el('p', {}, el('b', {}, 'No containers yet.')),
        el('p', {}, 'Start one, and it shows up here by itself: stoker listens to the container runtimes.'),
        el('p', {}, 'If some are running already, ', el('code', {}, 'stoker doctor'), ' tells which runtimes it reaches, and ', el('code', {}, 'stoker ps'), ' what it found.')));
    return;
  }
  const scroll = list.scrollTop;
  const all = el('div', { class: 'container all', role: 'option', id: 'c-all', 'aria-selected': String(!state.container), data: { id: '' }, onclick: () => setState({ container: '' }) },
    el('span', { class: 'c-name' }, 'All containers'), el('span', { class: 'c-cores' }, cores(total)));
  list.replaceChildren(...(find ? [] : [all]), ...rows.map((r) => {
    const c = r.info, gone = !c || c.state === 'gone' || Boolean(c.gone_at);
    const off = c && !gone && c.reason;
    const sub = [c?.pod?.name, c?.image && shortImage(c.image), c?.runtime].filter(Boolean);
    if (gone) sub.push('gone');
    return el('div', { class: 'container' + (gone ? ' gone' : '') + (off ? ' off' : ''), role: 'option', id: 'c-' + r.id, 'aria-selected': String(r.id === state.container),
      title: off ? 'Not profiled: ' + c.reason : r.id, data: { id: r.id || '' },
      onclick: () => setState({ container: state.container === r.id ? '' : r.id }) },
    el('i', { class: 'swatch', style: { background: r.cores > 0 ? color(r.id) : 'transparent' } }),
    el('span', { class: 'c-name' }, r.name), el('span', { class: 'c-cores' }, off && !r.cores ? 'off' : cores(r.cores)),
    el('span', { class: 'c-sub' }, off ? c.reason : sub.join(' · ') || (r.labels.container_image ? shortImage(r.labels.container_image) : '')), sparkline(r.values, r.cores > 0 ? color(r.id) : 'transparent'));
  }));
  if (!rows.length) list.append(el('div', { class: 'empty' }, el('p', {}, 'No container has that in its name, image or id.')));
  list.scrollTop = scroll;
  const active = list.querySelector('[aria-selected=true]');
  if (active) list.setAttribute('aria-activedescendant', active.id);
}

function shortImage(image) { return image.replace(/@sha256:[0-9a-f]+$/, '').split('/').pop(); }

function drawStatus() {
  if (!health) return;
  $('node').textContent = health.node || '';
  document.title = health.node ? `${health.node} · stoker` : 'stoker';
  const bad = (health.parts || []).filter((p) => p.state !== 'ok');
  $('status-health').replaceChildren(el('i', { class: 'dot ' + health.status }), health.status === 'ok' ? 'Everything works' : bad.map((p) => p.name).join(', ') + ': ' + health.status);
  $('status-health').title = bad.map((p) => `${p.name}: ${p.message}${p.remedy ? '\n→ ' + p.remedy : ''}`).join('\n');
  const s = health.samples || {};
  $('status-samples').textContent = s.taken ? `${count(s.taken)} samples, ${s.lost ? count(s.lost) + ' lost' : 'none lost'}` : '';
  $('status-store').textContent = health.store?.bytes ? `Store ${bytes(health.store.bytes)}${health.store.max_bytes ? ' of ' + bytes(health.store.max_bytes) : ''}` : '';
  drawBanner();
}

function drawBanner() {
  const b = $('banner');
  const lines = [...failures.values()].filter((e) => e.status !== 401).map((e) => [e.message, e.remedy]);
  const seen = new Set();
  const parts = (health?.parts || []).filter((p) => p.state === 'failing').map((p) => [`${p.name}: ${p.message}`, p.remedy]);
  const rows = [...lines, ...parts].filter(([m]) => !seen.has(m) && seen.add(m));
  b.hidden = rows.length === 0;
  b.replaceChildren(...rows.map(([m, r]) => el('div', {}, el('b', {}, m), r ? el('span', {}, ' · ' + r) : null)));
}

function askToken() {
  if (document.querySelector('dialog[open]')) return;
  const input = el('input', { type: 'password', name: 'token', autocomplete: 'off', 'aria-label': 'Token', required: true });
  const d = el('dialog', { class: 'dialog' }, el('form', { method: 'dialog', onsubmit: () => { setToken(input.value.trim()); setTimeout(() => { d.remove(); refresh(); }); } },
    el('h2', {}, 'This agent asks for a token'), el('p', {}, 'It is the content of the file that ', el('code', {}, 'web.token_file'), ' names on the node. It is kept until this tab is closed.'),
    input, el('button', { class: 'button primary', type: 'submit' }, 'Go on')));
  d.addEventListener('cancel', () => d.remove());
  document.body.append(d);
  d.showModal();
}

// ---- the profile -----------------------------------------------------------------------------------------------------

let graph = null, graph2 = null;
let shown = ''; // which view #view holds now
const table = new Table([
  { id: 'name', title: 'Function', value: (r) => r.name },
  { id: 'self', title: 'Self', numeric: true, wide: true, hint: 'Time in the function itself', value: (r) => r.flat, text: (r) => cpuTime(r.flat) },
  { id: 'selfp', title: 'Self %', numeric: true, value: (r) => r.flat, text: (r) => percent(r.flat / total()), share: (r) => r.flat / total() },
  { id: 'total', title: 'Total', numeric: true, wide: true, hint: 'Time in the function and all it calls', value: (r) => r.cum, text: (r) => cpuTime(r.cum) },
  { id: 'totalp', title: 'Total %', numeric: true, value: (r) => r.cum, text: (r) => percent(r.cum / total()), share: (r) => r.cum / total() },
], { sort: 'self', empty: 'No samples.', label: 'Functions', onPick: (r) => setState({ view: 'flame', q: r.name }) });
const diffTable = new Table([
  { id: 'name', title: 'Function', value: (r) => r.name },
  { id: 'left', title: 'A self', numeric: true, value: (r) => shareOf(r, 'left_flat'), text: (r) => percent(shareOf(r, 'left_flat')) },
  { id: 'right', title: 'B self', numeric: true, value: (r) => shareOf(r, 'right_flat'), text: (r) => percent(shareOf(r, 'right_flat')) },
  { id: 'delta', title: 'Change', numeric: true, hint: 'Change of the share of all samples, B against A', value: (r) => shareOf(r, 'right_flat') - shareOf(r, 'left_flat'),
    text: (r) => signedPercent(shareOf(r, 'right_flat') - shareOf(r, 'left_flat')), className: (r) => direction(shareOf(r, 'right_flat') - shareOf(r, 'left_flat')) },
  { id: 'leftt', title: 'A total', numeric: true, wide: true, value: (r) => shareOf(r, 'left_cum'), text: (r) => percent(shareOf(r, 'left_cum')) },
  { id: 'rightt', title: 'B total', numeric: true, wide: true, value: (r) => shareOf(r, 'right_cum'), text: (r) => percent(shareOf(r, 'right_cum')) },
], { sort: 'delta', empty: 'No samples in either range.', label: 'Difference by function', onPick: (r) => { $('search').value = r.name; state.q = r.name; history.replaceState(null, '', writeHash(state)); search(); } });

const total = () => profile?.total || 1;
const direction = (d) => Math.abs(d) < 5e-5 ? '' : d > 0 ? 'up' : 'down';
function shareOf(r, field) {
  const t = field.startsWith('left') ? diff.left.total : diff.right.total;
  return t ? r[field] / t : 0;
}

async function drawMain() {
  if (!overview.loaded) return;
  drawMeta();
  const params = profileParams();
  $('deep').href = '/pprof/?' + new URLSearchParams(params);
  if (state.view === 'compare') return drawCompare();
  const key = JSON.stringify(params);
  const of = selected();
  if (!profile || profile.key !== key) {
    await load('profile', async () => {
      const answer = await get('/api/v1/profile', [...params, ['format', 'json']], { channel: 'profile' });
      answer.key = key;
      answer.of = of;
      profile = answer;
    });
    if (!profile || profile.key !== key) return;
  }
  if (state.view === 'compare') return; // the view changed while it was loading
  drawMeta();
  if (!profile.total) return drawEmpty();
  if (state.view === 'top') {
    show('top', () => [table.root]);
    table.set(profile.functions);
  } else {
    const fresh = show('flame', () => [el('div', { class: 'flame', id: 'flame' })]);
    if (fresh || !graph) graph = window.stokerFlamegraph($('flame'), profile.tree, { unit: profile.unit });
    else if (graph.key !== key) graph.update(profile.tree);
    graph.key = key;
  }
  search();
}

/** Puts a view into the panel, unless it is there. */
function show(name, make) {
  if (shown === name) return false;
  for (const g of [graph, graph2]) g?.destroy();
  graph = graph2 = null;
  shown = name;
  $('view').replaceChildren(...make());
  return true;
}

function search() {
  const q = state.q;
  for (const g of [graph, graph2]) g?.search(q);
  const m = matcher(q);
  table.filter(m);
  if (diff) diffTable.filter(m);
}

function drawEmpty() {
  const r = effectiveRange();
  const row = state.container && rowOf(state.container);
  const anything = overview.rows.some((x) => x.cores > 0);
  const store = health?.store;
  const oldest = store?.oldest ? Date.parse(store.oldest) : 0, newest = store?.newest ? Date.parse(store.newest) : 0;
  show('empty' + Math.random(), () => [el('div', { class: 'empty big' },
    el('h2', {}, row ? `No samples of ${row.name} here` : anything ? 'No samples here' : health && !store?.profiles ? 'Nothing is stored yet' : 'The store has nothing for this range'),
    row?.info?.reason ? el('p', {}, 'It is not profiled: ', row.info.reason)
      : el('p', {}, row ? 'It did not use the CPU between ' : 'Nothing was sampled between ', span(r.from, r.to), '.'),
    anything || !health ? null : store?.profiles
      ? el('p', {}, 'The store holds profiles from ', span(oldest, newest), '.')
      : el('p', {}, 'The store is empty. The first profiles are written at the end of a sampling window, about ten seconds after a container used the CPU.'),
    el('div', { class: 'row' },
      state.match.length ? el('button', { type: 'button', class: 'button', onclick: () => setState({ match: [] }) }, 'Clear the filter') : null,
      state.sel ? el('button', { type: 'button', class: 'button', onclick: () => setState({ sel: null }) }, 'Clear the selection') : null,
      row ? el('button', { type: 'button', class: 'button', onclick: () => setState({ container: '' }) }, 'All containers') : null,
      !anything && store?.profiles ? el('button', { type: 'button', class: 'button', onclick: () => setState({ from: String(Math.max(oldest, newest - 3600e3)), to: String(newest + 1000), sel: null }) }, 'Show the newest hour') : null,
      anything && row && state.from !== 'now-24h' ? el('button', { type: 'button', class: 'button', onclick: () => setState({ from: 'now-24h', to: 'now', sel: null }) }, 'Last 24 hours') : null))]);
}

/** What is selected, whatever the clock says: the numbers of the last refresh stand until the next ones have come. */
function selected() { return JSON.stringify([state.container, state.match, state.sel, state.from, state.to]); }

function drawMeta() {
  const m = $('meta');
  const row = state.view !== 'compare' && state.container ? rowOf(state.container) : null;
  const facts = [];
  const fact = (k, v, title) => facts.push(el('span', { class: 'fact', title }, el('span', { class: 'k' }, k), el('span', { class: 'v' }, v)));
  if (state.view !== 'compare' && profile?.total && profile.of === selected()) {
    fact('CPU time', profile.unit === 'nanoseconds' ? cpuTime(profile.total) : count(profile.total));
    const from = profile.from_ms, to = profile.to_ms;
    fact('of', `${duration(to - from)}, ${profile.profiles} ${profile.profiles === 1 ? 'profile' : 'profiles'}`, span(from, to));
    // Older profiles are kept in pieces of minutes, then hours: a short selection shows the whole of those it touches.
    if (profile.covered_from_ms < from - 60e3 || profile.covered_to_ms > to + 60e3) {
      fact('covers', span(profile.covered_from_ms, profile.covered_to_ms), 'Older profiles are kept merged: a selection shows the whole of each that it touches');
    }
    if (profile.unreadable) fact('damaged', `${profile.unreadable} not shown`, profile.unreadable_reason);
  } else if (state.view !== 'compare' && profile?.of !== selected()) fact('CPU time', '…');
  const c = row?.info;
  if (c) {
    if (c.image) fact('image', c.image);
    fact('runtime', [c.runtime, c.namespace].filter(Boolean).join(' / ') || 'unknown');
    if (c.pod) fact('pod', c.pod.namespace + '/' + c.pod.name);
    if (c.pid) fact('pid', String(c.pid));
    if (c.frequency_given) fact('rate', c.frequency_asked && c.frequency_asked !== c.frequency_given ? `${c.frequency_given} Hz (asked ${c.frequency_asked})` : c.frequency_given + ' Hz');
    if (c.in_scope_at) {
      const t = Date.parse(c.in_scope_at), s = Date.parse(c.started_at);
      fact('in scope', s ? (Math.abs(s - t) > 3600e3 ? 'at ' + moment(t) : duration(Math.abs(s - t)) + (c.scope_before_start ? ' before' : ' after') + ' its start') : 'since ' + moment(t),
        'The first moment from which its samples count');
    }
    if (c.sources) fact('found by', Object.keys(c.sources).join(', '));
    fact('id', (c.id || '').slice(0, 12), c.id);
    if (c.reason) fact('not profiled', c.reason);
    for (const n of c.notes || []) fact('note', n);
  }
  m.hidden = facts.length === 0;
  m.replaceChildren(...facts);
}

// ---- compare ---------------------------------------------------------------------------------------------------------

function half(second) {
  const bins = Math.max(2, overview.bins), middle = overview.start + Math.floor(bins / 2) * overview.step;
  return second ? { from: middle, to: overview.to } : { from: overview.from, to: middle };
}
function rangeA() { return state.a || half(false); }
function rangeB() { return state.b || half(true); }

function diffParams() {
  const a = rangeA(), b = rangeB(), ca = state.ac || state.container, cb = state.bc || state.container;
  const params = [['left_from', a.from], ['left_to', a.to], ['right_from', b.from], ['right_to', b.to], ...matchParams()];
  if (ca) params.push(['left_container', ca]);
  if (cb) params.push(['right_container', cb]);
  return params;
}

async function drawCompare() {
  const params = diffParams();
  const key = JSON.stringify([params, state.side]);
  if (!diff || diff.key !== key) {
    await load('diff', async () => {
      const answer = await get('/api/v1/diff', [...params, ...(state.side ? [['sides', '1']] : [])], { channel: 'diff' });
      answer.key = key;
      diff = answer;
    });
    if (!diff || diff.key !== key || state.view !== 'compare') return;
  }
  const fresh = show('compare-' + state.side, () => [
    el('div', { class: 'compare-cards' }, el('div', { class: 'card card-a', id: 'card-a' }), el('div', { class: 'card card-b', id: 'card-b' }),
      el('div', { class: 'segmented', role: 'group', 'aria-label': 'How to show it' },
        el('button', { type: 'button', 'aria-pressed': String(!state.side), onclick: () => setState({ side: false }) }, 'Difference'),
        el('button', { type: 'button', 'aria-pressed': String(state.side), onclick: () => setState({ side: true }) }, 'Side by side'))),
    el('div', { id: 'compare-empty', class: 'empty', hidden: true }),
    state.side
      ? el('div', { class: 'sides', id: 'compare-graphs' }, el('div', {}, el('h3', { class: 'which-a' }, 'A'), el('div', { class: 'flame', id: 'flame-a' })), el('div', {}, el('h3', { class: 'which-b' }, 'B'), el('div', { class: 'flame', id: 'flame-b' })))
      : el('div', { id: 'compare-graphs' }, el('div', { class: 'flame', id: 'flame' })),
    diffTable.root,
  ]);
  card('a', rangeA(), diff.left);
  card('b', rangeB(), diff.right);
  const none = !diff.left.total && !diff.right.total;
  $('compare-empty').hidden = !none;
  $('compare-empty').textContent = 'No samples in either range. Drag on the chart to choose others.';
  $('compare-graphs').hidden = none;
  if (state.side) {
    if (fresh || !graph) {
      graph = window.stokerFlamegraph($('flame-a'), diff.left.tree, { unit: diff.unit });
      graph2 = window.stokerFlamegraph($('flame-b'), diff.right.tree, { unit: diff.unit });
    } else { graph.update(diff.left.tree); graph2.update(diff.right.tree); }
  } else if (fresh || !graph) graph = window.stokerFlamegraph($('flame'), diff.tree, { unit: diff.unit, diff: true });
  else graph.update(diff.tree);
  diffTable.set(diff.functions);
  search();
}

function card(which, range, side) {
  const isActive = compareActive === which;
  const seconds = (range.to - range.from) / 1000;
  const select = el('select', { class: 'button small', 'aria-label': `Container of ${which.toUpperCase()}`, onchange: (e) => setState({ [which + 'c']: e.target.value }) },
    el('option', { value: '' }, state.container && rowOf(state.container) ? rowOf(state.container).name : 'All containers'),
    ...overview.rows.filter((r) => r.id && r.id !== state.container).map((r) => el('option', { value: r.id, selected: r.id === state[which + 'c'] }, r.name)));
  $('card-' + which).replaceChildren(
    el('button', { type: 'button', class: 'card-pick', 'aria-pressed': String(isActive), title: 'Then drag on the chart', onclick: () => { compareActive = which; drawOverview(); drawMain(); } },
      el('b', { class: 'which-' + which }, which.toUpperCase()), el('span', {}, span(range.from, range.to)), el('small', {}, isActive ? 'drag on the chart to set' : 'set')),
    el('div', { class: 'card-row' }, select,
      el('span', {}, el('b', {}, cores(side.total / 1e9 / seconds)), ' cores'), el('span', {}, el('b', {}, cpuTime(side.total)), ' in ' + duration(range.to - range.from))));
}

// ---- taking it away --------------------------------------------------------------------------------------------------

function fileName(ext) {
  const row = state.container && rowOf(state.container);
  const safe = (row ? row.name : 'all').replace(/[^\w.-]+/g, '_').slice(0, 60) || 'profile';
  const t = new Date(effectiveRange().to).toISOString().slice(0, 19).replace(/[:T]/g, '-');
  return `stoker-${state.view === 'compare' ? 'difference-' : ''}${safe}-${t}.${ext}`;
}

async function download(format, ext) {
  closeMenus();
  await load('download', async () => {
    const res = state.view === 'compare' ? await request('/api/v1/diff', [...diffParams(), ['format', format]]) : await request('/api/v1/profile', [...profileParams(), ['format', format]]);
    const url = URL.createObjectURL(await res.blob());
    const a = el('a', { href: url, download: fileName(ext) });
    document.body.append(a);
    a.click();
    a.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
}

/** A browser sends no token when it follows a link: the agent signs one. */
async function openDeep() {
  await load('deep', async () => {
    const { url } = await get('/api/v1/deep', profileParams());
    window.open(url, '_blank', 'noopener');
  });
}

try { setUTC(localStorage.getItem('stoker-utc') === '1'); } catch { /* local time, then */ }
wire();
drawControls();
refresh();
