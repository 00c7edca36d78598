// SPDX-License-Identifier: Apache-2.0
// The flame graph of stoker: window.stokerFlamegraph(element, tree, options). What it takes and returns is written in
// doc.go. Names come out of containers: they reach the page only through textContent and setAttribute, never as HTML.
(function () {
  "use strict";

  const MIN_PIXELS = 0.7; // narrower frames are not drawn; zooming shows them
  const NARROW_PIXELS = 18; // below that a frame has no text

  // make returns an element; text and attributes are set, never parsed.
  function make(tag, className, text, attributes) {
    const e = document.createElement(tag);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
    return e;
  }

  function hash(s) {
    let h = 2166136261;
    for (let i = 0; i < s.length; i++) h = Math.imul(h ^ s.charCodeAt(i), 16777619);
    h ^= h >>> 15; // the low bits of short strings are much alike
    return Math.imul(h, 2246822519) >>> 0;
  }

  const base = (path) => path.slice(path.lastIndexOf("/") + 1);

  // packageOf is what gives a frame its colour: Go's package, the first namespace of C++ and Rust, else the file.
  function packageOf(node) {
    const name = node.name;
    const go = /^((?:[\w.~%-]+\/)*[a-z_]\w*)\.[\w(]/.exec(name);
    if (go) return go[1];
    const scope = /^<?&?(?:mut |dyn )?([A-Za-z_]\w*)::/.exec(name);
    if (scope) return scope[1];
    return node.module || name;
  }

  // Mappings in brackets that are not the kernel's or one of its modules.
  const NOT_KERNEL = new Set(["[unmapped]", "[vdso]", "[vsyscall]", "[heap]", "[stack]", "[anon]", "[jit]"]);
  const isKernel = (node) => (node.module || "").startsWith("[") && !NOT_KERNEL.has(node.module);

  function significant(x) {
    const a = Math.abs(x);
    return a >= 100 || Number.isInteger(x) ? x.toFixed(0) : a >= 10 ? x.toFixed(1) : x.toFixed(2);
  }

  // formatValue writes a value in its pprof unit for people: 1530000000 nanoseconds are "1.53 s".
  function formatValue(v, unit) {
    const scale = (steps) => {
      for (const [least, size, name] of steps) if (Math.abs(v) >= least) return significant(v / size) + name;
    };
    const times = { nanoseconds: 1, microseconds: 1e3, milliseconds: 1e6, seconds: 1e9 };
    if (times[unit]) {
      v *= times[unit];
      if (v === 0) return "0 s";
      return scale([[7.2e12, 3.6e12, " h"], [1.2e11, 6e10, " min"], [1e9, 1e9, " s"], [1e6, 1e6, " ms"], [1e3, 1e3, " µs"], [0, 1, " ns"]]);
    }
    if (unit === "bytes") return scale([40, 30, 20, 10, 0].map((n, i) => [n ? 2 ** n : 0, 2 ** n, [" TiB", " GiB", " MiB", " KiB", " B"][i]]));
    const text = scale([[1e12, 1e12, " T"], [1e9, 1e9, " G"], [1e6, 1e6, " M"], [1e4, 1e3, " k"], [0, 1, ""]]);
    return unit && unit !== "count" ? text + " " + unit : text;
  }

  function formatShare(x) {
    if (!isFinite(x)) return "–";
    const p = x * 100;
    return (p === 0 ? "0" : Math.abs(p) < 0.01 ? "<0.01" : Math.abs(p) < 10 ? p.toFixed(2) : p.toFixed(1)) + "%";
  }

  // matcher takes what was typed as text and as a regular expression, for "main.(*T).f" is wanted as text and "^sys_" is not.
  function matcher(query) {
    const text = query.trim().toLowerCase();
    if (!text) return null;
    let regexp = null;
    try {
      regexp = new RegExp(query.trim(), "i");
    } catch {
      // not a regular expression: only text, then
    }
    return (name) => name.toLowerCase().includes(text) || (regexp !== null && regexp.test(name));
  }

  function stokerFlamegraph(element, tree, options) {
    const opts = Object.assign({ unit: "", diff: false, onSelect: null, inverted: false, baseline: 0 }, options);
    const diff = Boolean(opts.diff);

    element.classList.add("sfg");
    element.classList.toggle("sfg-diff", diff);
    const bar = make("div", "sfg-bar", undefined, { role: "search" });
    const input = make("input", "sfg-search", undefined, {
      type: "search", placeholder: "Search: text or regular expression", "aria-label": "Search functions", spellcheck: "false",
      autocomplete: "off", autocapitalize: "off",
    });
    const found = make("span", "sfg-found", "", { role: "status" });
    const flip = make("button", "sfg-button sfg-flip", "Flip", { type: "button", title: "Root at the top or at the bottom" });
    const home = make("button", "sfg-button sfg-reset", "Reset zoom", { type: "button", title: "Show everything (Esc)" });
    bar.append(input, found, flip, home);
    if (diff) {
      const legend = make("span", "sfg-legend", undefined, { "aria-label": "Blue frames take a smaller share than in the base, orange ones a larger" });
      legend.append(make("span", "sfg-less", "less"), make("span", "sfg-same", "same"), make("span", "sfg-more", "more"));
      bar.insertBefore(legend, flip);
    }
    const chart = make("div", "sfg-chart", undefined, { role: "tree", "aria-label": "Flame graph" });
    const details = make("div", "sfg-details");
    const detailsName = make("div", "sfg-details-name");
    const detailsText = make("div", "sfg-details-text");
    details.append(detailsName, detailsText);
    element.replaceChildren(bar, chart, details);

    let items = []; // one for each node, parents first: {node, parent, children, depth, start, weight}
    let byNode = new Map();
    let zoomed = null;
    let matches = null; // null: no search; else a Set of items
    let inverted = Boolean(opts.inverted);
    let drawn = new Map(); // item → element
    let focused = null; // the item that the keyboard stands on
    let total = 0, baseTotal = 0;
    let partial = false; // some nodes were too small to be sent: a search may miss something

    const weight = (n) => n.total + (diff ? n.baseTotal || 0 : 0);

    function index(root) {
      items = [];
      partial = false;
      byNode = new Map();
      const first = { node: root, parent: null, children: [], depth: 0, start: 0, weight: weight(root) };
      const queue = [first];
      for (let i = 0; i < queue.length; i++) {
        const item = queue[i];
        items.push(item);
        if (item.node.other) partial = true;
        byNode.set(item.node, item);
        let start = item.start;
        for (const n of item.node.children || []) {
          const child = { node: n, parent: item, children: [], depth: item.depth + 1, start, weight: weight(n) };
          start += child.weight;
          item.children.push(child);
          queue.push(child);
        }
      }
      total = opts.baseline || root.total;
      baseTotal = root.baseTotal || 0;
    }

    const pathOf = (item) => {
      const names = [];
      for (let i = item; i; i = i.parent) names.unshift(i.node.name + "\0" + (i.node.module || ""));
      return names;
    };

    // follow finds the item at the end of a path of names as far as it still exists.
    function follow(names) {
      let item = items[0];
      for (const n of names.slice(1)) {
        const next = item.children.find((c) => c.node.name + "\0" + (c.node.module || "") === n);
        if (!next) break;
        item = next;
      }
      return item;
    }

    // change is how a node's share moved between base and compare, from -1 (gone) to 1 (new).
    function change(n) {
      const a = baseTotal ? (n.baseTotal || 0) / baseTotal : 0;
      const b = total ? n.total / total : 0;
      return a + b === 0 ? 0 : (b - a) / (a + b);
    }

    function colour(e, item) {
      const n = item.node;
      if (diff) {
        const c = change(n);
        e.style.setProperty("--sfg-hue", c >= 0 ? "22" : "212");
        e.style.setProperty("--sfg-strength", Math.round(Math.min(1, Math.abs(c) * 1.6) * 100) + "%");
      } else if (item.parent === null || n.other) {
        e.classList.add("sfg-plain");
      } else if (isKernel(n)) {
        e.classList.add("sfg-kernel");
        e.style.setProperty("--sfg-shade", (hash(n.name) % 7) + "%");
      } else {
        const h = hash(packageOf(n));
        e.style.setProperty("--sfg-hue", String(h % 360));
        e.style.setProperty("--sfg-shade", (hash(n.name) % 9) + "%");
      }
    }

    function label(item) {
      const n = item.node;
      if (!diff) return n.name + ", " + formatValue(n.total, opts.unit) + ", " + formatShare(total ? n.total / total : 0);
      return n.name + ", " + formatShare(baseTotal ? (n.baseTotal || 0) / baseTotal : 0) + " → " + formatShare(total ? n.total / total : 0);
    }

    function draw() {
      const width = chart.clientWidth || element.clientWidth || 1;
      const row = parseFloat(getComputedStyle(chart).getPropertyValue("--sfg-row")) || 20;
      const hadFocus = chart.contains(document.activeElement);
      drawn = new Map();
      const parts = document.createDocumentFragment();
      let deepest = 0;
      const place = (item, left, share, above) => {
        const pixels = share * width;
        const e = make("div", "sfg-frame", item.node.name, { role: "treeitem", tabindex: "-1", "aria-level": String(item.depth + 1), "aria-label": label(item) });
        e.style.left = left * 100 + "%";
        e.style.width = share * 100 + "%";
        e.style[inverted ? "bottom" : "top"] = item.depth * row + "px";
        if (pixels < NARROW_PIXELS) e.classList.add("sfg-narrow");
        if (above) e.classList.add("sfg-above");
        if (matches && !matches.has(item)) e.classList.add("sfg-miss");
        if (matches && matches.has(item)) e.classList.add("sfg-match");
        colour(e, item);
        e.sfgItem = item;
        drawn.set(item, e);
        parts.append(e);
        deepest = Math.max(deepest, item.depth);
      };
      for (let i = zoomed.parent; i; i = i.parent) place(i, 0, 1, true);
      const scale = zoomed.weight || 1;
      const todo = [zoomed];
      while (todo.length) {
        const item = todo.pop();
        const share = item === zoomed ? 1 : item.weight / scale;
        if (share * width < MIN_PIXELS) continue;
        place(item, item === zoomed ? 0 : (item.start - zoomed.start) / scale, share, false);
        for (const c of item.children) todo.push(c);
      }
      chart.style.height = (deepest + 1) * row + "px";
      chart.replaceChildren(parts);
      home.disabled = zoomed === items[0];
      if (!focused || !drawn.has(focused)) focused = zoomed;
      const e = drawn.get(focused);
      e.tabIndex = 0;
      if (hadFocus) e.focus({ preventScroll: true });
    }

    function describe(item) {
      const n = item.node;
      detailsName.textContent = n.name;
      const parts = [];
      if (diff) {
        const a = baseTotal ? (n.baseTotal || 0) / baseTotal : 0;
        const b = total ? n.total / total : 0;
        parts.push("base " + formatValue(n.baseTotal || 0, opts.unit) + " (" + formatShare(a) + ")");
        parts.push("compare " + formatValue(n.total, opts.unit) + " (" + formatShare(b) + ")");
        const d = (b - a) * 100;
        parts.push((d > 0 ? "+" : d < 0 ? "−" : "") + Math.abs(d).toFixed(2) + " points");
      } else {
        parts.push("total " + formatValue(n.total, opts.unit) + " (" + formatShare(total ? n.total / total : 0) + ")");
        parts.push("self " + formatValue(n.self, opts.unit) + " (" + formatShare(total ? n.self / total : 0) + ")");
        if (zoomed !== items[0] && zoomed.node.total) parts.push(formatShare(n.total / zoomed.node.total) + " of the zoomed frame");
      }
      if (n.module) parts.push(base(n.module));
      if (n.file) parts.push(n.file);
      detailsText.textContent = parts.join(" · ");
      details.title = [n.name, n.module, n.file].filter(Boolean).join("\n");
    }

    function zoomTo(item) {
      zoomed = item;
      focused = item;
      draw();
      describe(item);
    }

    function search(query) {
      const match = matcher(query);
      if (input.value !== query) input.value = query;
      let value = 0, count = 0;
      if (!match) {
        matches = null;
        found.textContent = "";
      } else {
        matches = new Set();
        const inside = new Set(); // below a match: its value is already counted
        for (const item of items) { // parents first
          if (item.parent && inside.has(item.parent)) inside.add(item);
          if (!item.parent || item.node.other || !match(item.node.name)) continue;
          matches.add(item);
          count++;
          if (!inside.has(item)) {
            value += item.node.total;
            inside.add(item);
          }
        }
        found.textContent = count === 0 ? "no match" : (partial ? "≥ " : "") + formatShare(total ? value / total : 0) + " in " + count + (count === 1 ? " frame" : " frames");
        found.title = partial ? "Frames that are part of “other” are too small to be searched" : "";
      }
      for (const [item, e] of drawn) {
        e.classList.toggle("sfg-match", matches !== null && matches.has(item));
        e.classList.toggle("sfg-miss", matches !== null && !matches.has(item));
      }
      return { matches: count, value, share: total ? value / total : 0, partial };
    }

    const itemOf = (event) => {
      const e = event.target.closest ? event.target.closest(".sfg-frame") : null;
      return e ? e.sfgItem : null;
    };

    function choose(item) {
      zoomTo(item);
      if (opts.onSelect) opts.onSelect(item.node);
    }

    chart.addEventListener("click", (event) => {
      const item = itemOf(event);
      if (item) choose(item);
    });
    chart.addEventListener("pointerover", (event) => {
      const item = itemOf(event);
      if (item) describe(item);
    });
    chart.addEventListener("pointerleave", () => describe(zoomed));
    chart.addEventListener("focusin", (event) => {
      const item = itemOf(event);
      if (!item) return;
      const old = drawn.get(focused);
      if (old) old.tabIndex = -1;
      focused = item;
      drawn.get(item).tabIndex = 0;
      describe(item);
    });
    const moves = {
      ArrowUp: (i) => (inverted ? heaviest(i) : i.parent),
      ArrowDown: (i) => (inverted ? i.parent : heaviest(i)),
      ArrowLeft: (i) => sibling(i, -1),
      ArrowRight: (i) => sibling(i, 1),
    };
    function heaviest(item) {
      let best = null;
      for (const c of item.children) if (drawn.has(c) && (!best || c.weight > best.weight)) best = c;
      return best;
    }
    function sibling(item, step) {
      if (!item.parent) return null;
      const row = item.parent.children.filter((c) => drawn.has(c));
      return row[row.indexOf(item) + step] || null;
    }
    chart.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (moves[event.key]) {
        const next = moves[event.key](focused);
        if (next && drawn.has(next)) drawn.get(next).focus();
        event.preventDefault();
      } else if (event.key === "Enter" || event.key === " ") {
        choose(focused);
        event.preventDefault();
      }
    });
    const onKey = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = /^(input|textarea|select)$/i.test(document.activeElement ? document.activeElement.tagName : "");
      if (event.key === "Escape" && element.contains(document.activeElement) || event.key === "Escape" && document.activeElement === document.body) {
        if (document.activeElement === input && input.value) search("");
        else zoomTo(items[0]);
      } else if (event.key === "/" && !typing && element.offsetParent !== null) {
        input.focus();
        input.select();
        event.preventDefault();
      }
    };
    document.addEventListener("keydown", onKey);
    input.addEventListener("input", () => search(input.value));
    home.addEventListener("click", () => choose(items[0]));
    flip.addEventListener("click", () => {
      inverted = !inverted;
      draw();
    });
    let lastWidth = 0;
    const observer = new ResizeObserver(() => {
      if (chart.clientWidth !== lastWidth) {
        lastWidth = chart.clientWidth;
        draw();
      }
    });

    index(tree);
    zoomTo(items[0]);
    lastWidth = chart.clientWidth;
    observer.observe(chart);

    return {
      search,
      reset: () => zoomTo(items[0]),
      zoom: (node) => {
        const item = byNode.get(node);
        if (item) zoomTo(item);
      },
      update: (next) => {
        const names = pathOf(zoomed);
        index(next);
        focused = null;
        matches = null;
        zoomTo(follow(names));
        search(input.value);
      },
      destroy: () => {
        observer.disconnect();
        document.removeEventListener("keydown", onKey);
        element.replaceChildren();
        element.classList.remove("sfg", "sfg-diff");
      },
    };
  }

  stokerFlamegraph.formatValue = formatValue;
  stokerFlamegraph.formatShare = formatShare;
  window.stokerFlamegraph = stokerFlamegraph;
})();
