// SPDX-License-Identifier: Apache-2.0
// Wires the page that html.go writes: draws the flame graph and makes the table of functions sort and search.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const section = document.getElementById("graph");
  const graph = window.stokerFlamegraph(section, data.tree, { unit: data.unit, diff: data.diff });

  const table = document.getElementById("top");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const up = head.getAttribute("aria-sort") === (numeric ? "descending" : "ascending") ? numeric : !numeric;
      for (const h of heads) h.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => (numeric ? Number(row.cells[column].dataset.v) : row.cells[column].firstElementChild.textContent);
      const rows = Array.from(body.rows);
      rows.sort((a, b) => (numeric ? key(a) - key(b) : key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
  body.addEventListener("click", (event) => {
    const name = event.target.closest(".fn");
    if (!name) return;
    graph.reset();
    graph.search(name.textContent);
    section.scrollIntoView({ block: "start", behavior: "smooth" });
  });
})();
