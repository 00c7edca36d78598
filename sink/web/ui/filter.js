// The label filter: conditions as chips, and a text field that completes names, then values.
import { el } from './format.js';

const CONDITION = /^\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)(.*)$/;

export class Filter {
  /** onChange(conditions) with strings such as "service_name=web". */
  constructor({ root, input, list, chips }, onChange) {
    Object.assign(this, { root, input, list, chips, onChange });
    this.labels = {};
    this.conditions = [];
    this.active = -1;
    input.addEventListener('input', () => this.complete());
    input.addEventListener('focus', () => this.complete());
    input.addEventListener('blur', () => setTimeout(() => this.close(), 150));
    input.addEventListener('keydown', (e) => this.key(e));
    root.addEventListener('click', (e) => { if (e.target === root) input.focus(); });
  }

  setLabels(labels) { this.labels = labels; if (document.activeElement === this.input) this.complete(); }

  set(conditions) {
    this.conditions = conditions.slice();
    this.chips.replaceChildren(...conditions.map((c, i) => {
      const m = CONDITION.exec(c) || [c, c, '', ''];
      return el('li', { class: 'chip' }, el('span', { class: 'chip-name' }, m[1]), el('span', { class: 'chip-op' }, m[2]), el('span', { class: 'chip-value' }, m[3]),
        el('button', { type: 'button', 'aria-label': 'Remove filter ' + c, onclick: () => this.remove(i) }, '×'));
    }));
    this.input.placeholder = conditions.length ? 'Add another' : this.input.dataset.hint;
  }

  remove(i) { this.onChange(this.conditions.filter((_, j) => j !== i)); this.input.focus(); }

  add(text) {
    if (!CONDITION.test(text)) { this.root.classList.add('bad'); return; }
    this.input.value = '';
    this.close();
    if (!this.conditions.includes(text)) this.onChange([...this.conditions, text]);
  }

  options() {
    const text = this.input.value;
    const m = CONDITION.exec(text);
    if (!m) {
      const t = text.trim().toLowerCase();
      const names = Object.keys(this.labels).sort();
      const byName = names.filter((n) => n.toLowerCase().includes(t)).map((n) => ({ show: [n, this.labels[n].length === 1 ? '1 value' : this.labels[n].length + ' values'], text: n + '=' }));
      // A value typed on its own finds its name.
      const byValue = t.length < 2 ? [] : names.flatMap((n) => this.labels[n].filter((v) => v.toLowerCase().includes(t)).slice(0, 5)
        .map((v) => ({ show: [v, n], text: n + '=' + v, done: true })));
      return [...byName, ...byValue].slice(0, 50);
    }
    const [, name, op, value] = m;
    const t = value.trim().toLowerCase();
    return (this.labels[name] || []).filter((v) => v.toLowerCase().includes(t)).slice(0, 50)
      .map((v) => ({ show: [v, ''], text: name + op + (op.endsWith('~') ? v.replace(/[.*+?^${}()|[\]\\]/g, '\\$&') : v), done: true }));
  }

  complete() {
    this.root.classList.remove('bad');
    const options = this.shown = this.options();
    this.active = -1;
    this.list.hidden = options.length === 0;
    this.input.setAttribute('aria-expanded', String(options.length > 0));
    this.input.removeAttribute('aria-activedescendant');
    this.list.replaceChildren(...options.map((o, i) => el('li', { role: 'option', id: 'filter-option-' + i, 'aria-selected': 'false',
      onpointerdown: (e) => { e.preventDefault(); this.take(o); } }, el('span', {}, o.show[0]), el('small', {}, o.show[1]))));
  }

  take(o) {
    if (o.done) return this.add(o.text);
    this.input.value = o.text;
    this.input.focus();
    this.complete();
  }

  close() { this.list.hidden = true; this.input.setAttribute('aria-expanded', 'false'); this.active = -1; }

  key(e) {
    const n = this.list.hidden ? 0 : this.shown.length;
    switch (e.key) {
      case 'ArrowDown': case 'ArrowUp':
        if (this.list.hidden) { this.complete(); return; }
        e.preventDefault();
        this.active = n ? (this.active + (e.key === 'ArrowDown' ? 1 : n)) % n : -1;
        if (e.key === 'ArrowUp' && this.active < 0) this.active = n - 1;
        [...this.list.children].forEach((li, i) => li.setAttribute('aria-selected', String(i === this.active)));
        this.list.children[this.active]?.scrollIntoView({ block: 'nearest' });
        this.input.setAttribute('aria-activedescendant', 'filter-option-' + this.active);
        break;
      case 'Enter':
        e.preventDefault();
        if (this.active >= 0) this.take(this.shown[this.active]);
        else if (this.input.value.trim()) this.add(this.input.value.trim());
        break;
      case 'Tab':
        if (this.active >= 0) { e.preventDefault(); this.take(this.shown[this.active]); }
        break;
      case 'Escape': this.close(); break;
      case 'Backspace':
        if (!this.input.value && this.conditions.length) this.remove(this.conditions.length - 1);
    }
  }
}
