// The CPU chart: stacked bars, one colour per container, with a brush. In compare mode there are two brushes, A and B.
import { el, cores, clock, dateTime, timeTicks } from './format.js';

const MARGIN = { left: 40, right: 8, top: 8, bottom: 20 };

export class Chart {
  /** onSelect(from, to, which) when a range was dragged (which: "sel", "a", "b"), onHover(time | null). */
  constructor(root, { onSelect, tooltip }) {
    this.root = root;
    this.onSelect = onSelect;
    this.tooltip = tooltip;
    this.data = null;
    this.brushes = [];
    this.active = 'sel';
    this.canvas = el('canvas', { role: 'img', tabindex: '0' });
    this.overlay = el('div', { class: 'brushes' });
    this.cursor = el('div', { class: 'cursor', hidden: true });
    this.empty = el('div', { class: 'chart-empty', hidden: true });
    root.append(this.canvas, this.overlay, this.cursor, this.empty);
    new ResizeObserver(() => this.draw()).observe(root);
    this.bindPointer();
    this.bindKeys();
  }

  /** data: {from, to, start, step, series: [{name, color, values, faint}]}; all times in milliseconds. */
  set(data) { this.data = data; this.draw(); }

  setBrushes(brushes, active) {
    this.brushes = brushes;
    this.active = active;
    this.drawBrushes();
  }

  x(t) { const d = this.data; return MARGIN.left + (t - d.from) / (d.to - d.from) * (this.width - MARGIN.left - MARGIN.right); }
  t(x) {
    const d = this.data;
    const f = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    return d.from + Math.min(1, Math.max(0, f)) * (d.to - d.from);
  }

  draw() {
    const d = this.data;
    this.width = this.root.clientWidth;
    this.height = this.root.clientHeight;
    if (!this.width || !this.height) return;
    const dpr = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * dpr);
    this.canvas.height = Math.round(this.height * dpr);
    const g = this.canvas.getContext('2d');
    g.scale(dpr, dpr);
    const css = getComputedStyle(this.root);
    const line = css.getPropertyValue('--line').trim(), dim = css.getPropertyValue('--dim').trim();
    g.clearRect(0, 0, this.width, this.height);
    const bottom = this.height - MARGIN.bottom, plot = bottom - MARGIN.top, right = this.width - MARGIN.right;
    if (!d) return;

    const n = d.series.length ? Math.max(...d.series.map((s) => s.values.length)) : 0;
    const sums = new Float64Array(n);
    for (const s of d.series) for (let i = 0; i < s.values.length; i++) sums[i] += s.values[i];
    const highest = Math.max(0, ...sums), peak = niceCeil(highest > 0 ? Math.max(0.01, highest) : 1);
    this.sums = sums;

    g.font = '11px system-ui, sans-serif';
    g.textBaseline = 'middle';
    g.lineWidth = 1;
    const rows = this.height < 110 ? 2 : 4;
    for (let i = 0; i <= rows; i++) {
      const y = Math.round(bottom - plot * i / rows) + 0.5;
      g.strokeStyle = line;
      g.beginPath(); g.moveTo(MARGIN.left, y); g.lineTo(right, y); g.stroke();
      g.fillStyle = dim;
      g.textAlign = 'right';
      g.fillText(axis(peak * i / rows, peak), MARGIN.left - 6, y);
    }
    g.textAlign = 'center';
    for (const { t, text } of timeTicks(d.from, d.to, Math.max(2, Math.floor(this.width / 110)))) {
      const x = this.x(t), half = g.measureText(text).width / 2;
      if (x - half < MARGIN.left - 8 || x + half > this.width) continue;
      g.fillStyle = dim;
      g.fillText(text, x, bottom + 11);
    }

    g.save();
    g.beginPath(); g.rect(MARGIN.left, 0, right - MARGIN.left, bottom); g.clip();
    const base = new Float64Array(n);
    for (const s of d.series) {
      g.fillStyle = s.color;
      g.globalAlpha = s.faint ? 0.16 : 0.92;
      for (let i = 0; i < s.values.length; i++) {
        if (!s.values[i]) continue;
        const x0 = this.x(d.start + i * d.step), x1 = this.x(d.start + (i + 1) * d.step);
        const gap = x1 - x0 > 5 ? 1 : 0;
        const y0 = bottom - base[i] / peak * plot, y1 = bottom - (base[i] + s.values[i]) / peak * plot;
        const left = gap ? Math.round(x0) : x0, w = gap ? Math.round(x1) - left - gap : x1 - x0 + 0.4;
        g.fillRect(left, y1, w, y0 - y1);
        base[i] += s.values[i];
      }
    }
    g.restore();
    this.canvas.setAttribute('aria-label', this.describe());
    this.drawBrushes();
  }

  describe() {
    const d = this.data;
    const names = d.series.filter((s) => !s.faint).slice(0, 5).map((s) => s.name).join(', ');
    return `CPU from ${dateTime(d.from)} to ${dateTime(d.to)}, at most ${cores(Math.max(0, ...this.sums))} cores; ${names}. ` +
      'Arrow keys move a cursor, with Shift they select a range, Escape clears it.';
  }

  drawBrushes() {
    if (!this.data || !this.width) return;
    const list = this.dragging ? this.brushes.filter((b) => b.which !== this.dragging.which).concat(this.dragging) : this.brushes;
    this.overlay.replaceChildren(...list.filter((b) => b.to > this.data.from && b.from < this.data.to).flatMap((b) => {
      const x0 = this.x(Math.max(b.from, this.data.from)), x1 = this.x(Math.min(b.to, this.data.to));
      const shade = (from, to) => el('div', { class: 'shade', style: { left: from + 'px', width: Math.max(0, to - from) + 'px', bottom: MARGIN.bottom + 'px' } });
      return [...(b.which === 'sel' ? [shade(MARGIN.left, x0), shade(x1, this.width - MARGIN.right)] : []), el('div', { class: `brush brush-${b.which}`, style: { left: x0 + 'px', width: Math.max(2, x1 - x0) + 'px', bottom: MARGIN.bottom + 'px' } },
        b.which === 'sel' ? null : el('span', {}, b.which.toUpperCase()))];
    }));
  }

  bindPointer() {
    const c = this.root;
    let start = null;
    c.addEventListener('pointerdown', (e) => {
      if (!this.data || (e.pointerType === 'mouse' && e.button !== 0)) return;
      start = { x: this.local(e), t: this.t(this.local(e)) };
      c.setPointerCapture(e.pointerId);
    });
    c.addEventListener('pointermove', (e) => {
      if (!this.data) return;
      const x = this.local(e);
      if (start && Math.abs(x - start.x) > 3) {
        const t = this.t(x);
        this.dragging = { which: this.active, from: Math.min(start.t, t), to: Math.max(start.t, t) };
        this.drawBrushes();
      }
      this.hover(x, e.clientX, e.clientY);
    });
    const end = (e) => {
      if (!start) return;
      start = null;
      if (e.pointerType !== 'mouse') this.leave(); // a finger does not hover
      const d = this.dragging;
      this.dragging = null;
      if (d && e.type === 'pointerup') this.commit(d.from, d.to);
      else if (e.type === 'pointerup') this.onSelect(null, null, this.active);
      this.drawBrushes();
    };
    c.addEventListener('pointerup', end);
    c.addEventListener('pointercancel', end);
    c.addEventListener('pointerleave', () => this.leave());
  }

  /** A selection covers whole steps: a part of a bar cannot be told from the rest of it. */
  commit(from, to) {
    const d = this.data;
    from = Math.max(d.from, d.start + Math.floor((from - d.start) / d.step) * d.step);
    to = Math.min(d.to, d.start + Math.ceil((to - d.start) / d.step) * d.step);
    this.onSelect(Math.round(from), Math.round(to), this.active);
  }

  bindKeys() {
    this.canvas.addEventListener('keydown', (e) => {
      const d = this.data;
      if (!d) return;
      if (e.key === 'Escape') { this.anchor = null; this.onSelect(null, null, this.active); return; }
      if (e.key !== 'ArrowLeft' && e.key !== 'ArrowRight') return;
      e.preventDefault();
      const i = this.at ?? Math.floor((d.to - d.start) / d.step) - 1;
      const next = Math.min(Math.max(0, i + (e.key === 'ArrowRight' ? 1 : -1)), Math.ceil((d.to - d.start) / d.step) - 1);
      if (e.shiftKey) {
        this.anchor ??= i;
        const a = Math.min(this.anchor, next), b = Math.max(this.anchor, next);
        this.commit(d.start + a * d.step + 1, d.start + (b + 1) * d.step - 1);
      } else this.anchor = null;
      this.at = next;
      const box = this.root.getBoundingClientRect();
      const x = this.x(d.start + (next + 0.5) * d.step);
      this.hover(x, box.left + x, box.top + 20);
    });
    this.canvas.addEventListener('blur', () => this.leave());
  }

  local(e) { return e.clientX - this.root.getBoundingClientRect().left; }

  leave() { this.cursor.hidden = true; this.tooltip.hide(); }

  hover(x, clientX, clientY) {
    const d = this.data;
    if (x < MARGIN.left || x > this.width - MARGIN.right) return this.leave();
    const i = Math.floor((this.t(x) - d.start) / d.step);
    this.at = i;
    this.cursor.hidden = false;
    this.cursor.style.left = x + 'px';
    const here = d.series.map((s) => ({ name: s.name, color: s.color, faint: s.faint, v: s.values[i] || 0 })).filter((s) => s.v > 0)
      .sort((a, b) => b.v - a.v);
    const t0 = d.start + i * d.step;
    this.tooltip.show(clientX, clientY, [
      el('div', { class: 'tip-head' }, `${clock(t0)} – ${clock(t0 + d.step)}`, el('b', {}, cores(this.sums[i] || 0) + ' cores')),
      ...here.slice(0, 8).map((s) => el('div', { class: 'tip-row' + (s.faint ? ' faint' : '') },
        el('i', { class: 'swatch', style: { background: s.color } }), el('span', { class: 'tip-name' }, s.name), el('b', {}, cores(s.v)))),
      here.length > 8 ? el('div', { class: 'tip-more' }, `and ${here.length - 8} more`) : null,
      here.length === 0 ? el('div', { class: 'tip-more' }, 'nothing sampled') : null,
    ]);
  }
}

function niceCeil(v) {
  const p = 10 ** Math.floor(Math.log10(v));
  for (const m of [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10]) if (v <= m * p * 1.0001) return m * p;
  return 10 * p;
}

function axis(v, peak) {
  if (v === 0) return '0';
  return peak < 0.1 ? v.toFixed(3) : peak < 2 ? v.toFixed(2) : peak < 20 ? v.toFixed(1) : v.toFixed(0);
}

/** A small chart without axes for the list of containers. */
export function sparkline(values, color) {
  const w = 96, h = 22, n = values.length;
  if (!n) return el('svg:svg', { class: 'spark', viewBox: `0 0 ${w} ${h}`, 'aria-hidden': 'true' });
  const peak = Math.max(...values, 1e-9);
  const at = (i) => [(i / Math.max(1, n - 1)) * w, h - 1 - values[i] / peak * (h - 3)];
  let d = '';
  for (let i = 0; i < n; i++) { const [x, y] = at(i); d += (i ? 'L' : 'M') + x.toFixed(1) + ' ' + y.toFixed(1); }
  return el('svg:svg', { class: 'spark', viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    el('svg:path', { d: `${d}L${w} ${h}L0 ${h}Z`, fill: color, opacity: '.22' }),
    el('svg:path', { d, fill: 'none', stroke: color, 'stroke-width': '1.3', 'vector-effect': 'non-scaling-stroke' }));
}
