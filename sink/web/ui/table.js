// A sortable table of functions. Rows are plain objects; columns say how to read, write and sort them.
import { el } from './format.js';

const MAX_ROWS = 500;

export class Table {
  /** columns: [{id, title, value(row), text(row), share(row)?, numeric, hint}], onPick(row) when a row is chosen. */
  constructor(columns, { sort, onPick, empty, label }) {
    Object.assign(this, { columns, onPick, empty });
    this.sort = { id: sort, down: true };
    this.rows = [];
    this.pattern = null;
    this.body = el('tbody', {});
    this.head = el('tr', {});
    this.note = el('p', { class: 'table-note', hidden: true });
    this.root = el('div', { class: 'table-wrap' }, el('table', { 'aria-label': label }, el('thead', {}, this.head), this.body), this.note);
    this.head.append(...columns.map((c) => el('th', { scope: 'col', class: (c.numeric ? 'num' : '') + (c.wide ? ' wide-only' : ''), data: { id: c.id } },
      el('button', { type: 'button', title: c.hint, onclick: () => this.by(c.id) }, c.title))));
  }

  by(id) {
    const numeric = this.columns.find((c) => c.id === id).numeric;
    this.sort = this.sort.id === id ? { id, down: !this.sort.down } : { id, down: Boolean(numeric) };
    this.draw();
  }

  set(rows) { this.rows = rows; this.draw(); }
  filter(test) { this.test = test; this.draw(); }

  draw() {
    const c = this.columns.find((x) => x.id === this.sort.id);
    const rows = this.test ? this.rows.filter((r) => this.test(r.name) || (r.module && this.test(r.module))) : this.rows.slice();
    rows.sort((a, b) => {
      const x = c.value(a), y = c.value(b);
      const order = typeof x === 'string' ? x.localeCompare(y) : x - y;
      return (this.sort.down ? -order : order) || (a.name < b.name ? -1 : 1);
    });
    for (const th of this.head.children) {
      if (th.dataset.id === this.sort.id) th.setAttribute('aria-sort', this.sort.down ? 'descending' : 'ascending');
      else th.removeAttribute('aria-sort');
    }
    // Bars compare rows with each other: the longest fills its column.
    const longest = new Map(this.columns.filter((c) => c.share).map((c) => [c, Math.max(1e-9, ...rows.map(c.share))]));
    this.body.replaceChildren(...rows.slice(0, MAX_ROWS).map((r) => el('tr', {}, ...this.columns.map((col) => {
      if (col.id === 'name') {
        return el('td', { class: 'name' }, el('button', { type: 'button', class: 'fn', title: r.name + (r.module ? '\n' + r.module : ''), onclick: () => this.onPick?.(r) },
          el('span', {}, r.name), r.module ? el('small', {}, base(r.module)) : null));
      }
      const td = el('td', { class: (col.numeric ? 'num ' : '') + (col.wide ? 'wide-only ' : '') + (col.className?.(r) || '') });
      if (col.share) td.append(el('i', { class: 'bar', style: { width: Math.max(0, col.share(r) / longest.get(col) * 100) + '%' } }));
      td.append(el('span', {}, col.text(r)));
      return td;
    }))));
    if (!rows.length) this.body.append(el('tr', {}, el('td', { class: 'none', colspan: this.columns.length }, this.test ? 'No function matches the search.' : this.empty)));
    this.note.hidden = rows.length <= MAX_ROWS;
    this.note.textContent = `The first ${MAX_ROWS} of ${rows.length} functions; search to find the others.`;
  }
}

export function base(path) { return path.slice(path.lastIndexOf('/') + 1) || path; }

/** What the flame graph's search takes too: text, which is also tried as a regular expression. */
export function matcher(query) {
  const text = query.trim().toLowerCase();
  if (!text) return null;
  let regexp = null;
  try { regexp = new RegExp(query.trim(), 'i'); } catch { /* not a regular expression: only text, then */ }
  return (s) => s.toLowerCase().includes(text) || (regexp !== null && regexp.test(s));
}
