// How numbers, times and names are written. No DOM here but el(), which every view builds with: text goes in as text, so
// that a name with markup in it stays a name.

/** el('div', {class: 'x', onclick: f, title: 't'}, child, 'text', …) */
export function el(tag, attrs, ...children) {
  const e = tag.startsWith('svg:') ? document.createElementNS('http://www.w3.org/2000/svg', tag.slice(4)) : document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else if (k === 'style') for (const [p, x] of Object.entries(v)) e.style.setProperty(p, x);
    else if (k === 'data') Object.assign(e.dataset, v);
    else e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}

let utc = false;
export function setUTC(v) { utc = v; }
export function isUTC() { return utc; }

export function cores(v) {
  if (!isFinite(v)) return '–';
  if (v === 0) return '0';
  if (v < 0.001) return '<0.001';
  if (v < 0.1) return v.toFixed(3);
  if (v < 10) return v.toFixed(2);
  return v.toFixed(1);
}

export function percent(v, digits) {
  if (!isFinite(v)) return '–';
  const p = v * 100;
  if (digits === undefined) digits = Math.abs(p) >= 99.95 ? 0 : Math.abs(p) >= 10 ? 1 : 2;
  return p.toFixed(digits) + '%';
}

export function signedPercent(v) {
  if (!isFinite(v)) return '–';
  const t = percent(Math.abs(v));
  if (parseFloat(t) === 0) return '0%';
  return (v < 0 ? '−' : '+') + t;
}

/** CPU time, from nanoseconds. */
export function cpuTime(ns) {
  const a = Math.abs(ns), sign = ns < 0 ? '−' : '';
  if (a === 0) return '0';
  if (a < 1e6) return sign + (a / 1e3).toFixed(0) + ' µs';
  if (a < 1e9) return sign + (a / 1e6).toFixed(a < 1e7 ? 1 : 0) + ' ms';
  if (a < 60e9) return sign + (a / 1e9).toFixed(2) + ' s';
  if (a < 3600e9) return sign + Math.floor(a / 60e9) + 'm ' + Math.round((a % 60e9) / 1e9) + 's';
  return sign + (a / 3600e9).toFixed(1) + ' h';
}

/** A length of time, from milliseconds. */
export function duration(ms) {
  const s = Math.round(ms / 1000);
  if (ms < 1000) return Math.round(ms) + 'ms';
  if (s < 60) return s + 's';
  if (s < 3600) return Math.floor(s / 60) + 'm' + (s % 60 ? (s % 60) + 's' : '');
  if (s < 86400) return Math.floor(s / 3600) + 'h' + (Math.floor(s % 3600 / 60) ? Math.floor(s % 3600 / 60) + 'm' : '');
  return Math.floor(s / 86400) + 'd' + (Math.floor(s % 86400 / 3600) ? Math.floor(s % 86400 / 3600) + 'h' : '');
}

export function bytes(n) {
  if (!isFinite(n)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? n.toFixed(0) : n.toFixed(1)) + ' ' + units[i];
}

export function count(n) { return n.toLocaleString('en-US'); }

const pad = (n, w = 2) => String(n).padStart(w, '0');

function parts(ms) {
  const d = new Date(ms);
  return utc
    ? { y: d.getUTCFullYear(), mo: d.getUTCMonth() + 1, d: d.getUTCDate(), h: d.getUTCHours(), m: d.getUTCMinutes(), s: d.getUTCSeconds() }
    : { y: d.getFullYear(), mo: d.getMonth() + 1, d: d.getDate(), h: d.getHours(), m: d.getMinutes(), s: d.getSeconds() };
}

export function clock(ms, seconds = true) {
  const p = parts(ms);
  return pad(p.h) + ':' + pad(p.m) + (seconds ? ':' + pad(p.s) : '');
}

export function day(ms) { const p = parts(ms); return p.y + '-' + pad(p.mo) + '-' + pad(p.d); }

export function dateTime(ms) { return day(ms) + ' ' + clock(ms); }

/** A moment, with its day where that is not today. */
export function moment(ms) { return day(ms) === day(Date.now()) ? clock(ms) : dateTime(ms); }

/** "14:02:10 – 14:03:40", with the day where it is not today. */
export function span(from, to) {
  const today = day(Date.now());
  const a = day(from) === today && day(to) === today ? clock(from) : dateTime(from);
  const b = day(from) === day(to) ? clock(to) : dateTime(to);
  return a + ' – ' + b;
}

/** Ticks for a time axis: at most n round instants within [from, to]. */
export function timeTicks(from, to, n) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800].map((s) => s * 1000);
  const step = steps.find((s) => (to - from) / s <= n) || steps[steps.length - 1];
  const offset = utc ? 0 : new Date(from).getTimezoneOffset() * 60000;
  const out = [];
  for (let t = Math.ceil((from - offset) / step) * step + offset; t <= to; t += step) {
    out.push({ t, text: step >= 86400e3 ? day(t).slice(5) : clock(t, step < 60e3) });
  }
  return out;
}

/** Reads what a person typed into a range field: a date and time in the page's zone, or something the server reads. */
export function readTime(text) {
  text = text.trim();
  const m = /^(?:(\d{4})-(\d\d?)-(\d\d?)[ T])?(\d\d?):(\d\d)(?::(\d\d))?$/.exec(text);
  if (!m) return text;
  const now = parts(Date.now());
  const f = [+(m[1] || now.y), +(m[2] || now.mo) - 1, +(m[3] || now.d), +m[4], +m[5], +(m[6] || 0)];
  return String(utc ? Date.UTC(...f) : new Date(...f).getTime());
}
