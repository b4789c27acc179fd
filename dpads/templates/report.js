"use strict";
(() => {
  const root = document.documentElement;

  // Pictures: every specification stands in the page beside its place.
  const drawings = [...document.querySelectorAll("[data-spec]")].map(async (place) => {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    try {
      await vegaEmbed(place, spec, {
        mode: "vega", renderer: "svg", actions: false, ast: true,
        tooltip: { theme: "custom", maxDepth: 1 },
      });
      place.setAttribute("aria-label", place.dataset.label);
    } catch (error) {
      place.textContent = "This picture could not be drawn here; see the files beside the page.";
      console.error(error);
    }
  });
  Promise.all(drawings).then(() => { root.dataset.charts = "drawn"; });

  // Tables: a head is a button that sorts, empty cells last in either direction.
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, place, isNumber) => {
      const text = row.cells[place].dataset.key;
      return text === "" ? null : isNumber ? Number(text) : text;
    };
    heads.forEach((head, place) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const isNumber = head.dataset.kind === "number";
        const rows = [...body.rows].map((row) => [key(row, place, isNumber), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = isNumber ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b);
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
        heads.forEach((other) => { if (other !== head) other.setAttribute("aria-sort", "none"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  // Filters: every word has to be somewhere in the row.
  for (const field of document.querySelectorAll("input[data-filters]")) {
    const body = document.getElementById(field.dataset.filters).tBodies[0];
    const shown = document.getElementById(field.dataset.count);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += row.hidden ? 0 : 1;
      }
      shown.textContent = `${count} of ${body.rows.length}`;
    });
  }
})();
