"use strict";
// Sorting: a button in each heading; numbers descend first, texts ascend; empty cells are last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const status = document.getElementById("status");
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isNumber = heading.classList.contains("n");
      const before = heading.getAttribute("aria-sort");
      const ascends = before ? before === "descending" : !isNumber;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascends ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.v ?? row.cells[column].textContent.trim(), row]);
      const sign = ascends ? 1 : -1;
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (isNumber ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
      status.textContent = `Sorted by ${button.textContent.trim()}, ${ascends ? "ascending" : "descending"}.`;
    });
  });
}
// Animations: one button stops or starts all of them.
const toggle = document.getElementById("animate");
if (toggle) {
  const sources = [...document.querySelectorAll("picture source")];
  const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = (stopped) => {
    for (const source of sources) source.media = stopped ? "all" : "not all";
    toggle.textContent = stopped ? "Play the clips" : "Stop the clips";
    toggle.setAttribute("aria-pressed", String(stopped));
  };
  let stopped = reduced;
  toggle.hidden = false;
  toggle.addEventListener("click", () => { stopped = !stopped; show(stopped); });
  show(stopped);
}
