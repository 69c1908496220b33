
"use strict";
// The page is complete without this: it only filters and sorts tables.
for (const controls of document.querySelectorAll(".controls")) controls.hidden = false;

function filter(id) {
  const words = document.querySelector(`[data-filter="${id}"]`).value.toLowerCase();
  const deviating = document.querySelector(`[data-deviating="${id}"]`).checked;
  for (const row of document.getElementById(id).tBodies[0].rows) {
    const other = !row.cells[0].textContent.toLowerCase().includes(words);
    row.hidden = other || (deviating && row.classList.contains("passes"));
  }
}
for (const input of document.querySelectorAll("[data-filter]")) {
  input.addEventListener("input", () => filter(input.dataset.filter));
}
for (const input of document.querySelectorAll("[data-deviating]")) {
  input.addEventListener("change", () => filter(input.dataset.deviating));
}

function sort(table, column, heading) {
  const down = heading.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = typeof x === "number" ? x - y : x.localeCompare(y);
    return down ? -order : order;
  });
  body.append(...rows);
}
for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(table, column, heading));
  });
}
