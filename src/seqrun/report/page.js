"use strict";

// Sort the rows of a table by the column whose header was clicked; nothing to sort by stands last.
function sortBy(header) {
  const table = header.closest("table");
  const place = Array.from(header.parentNode.children).indexOf(header);
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const numbers = header.classList.contains("number");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows).map((row) => [row.cells[place].dataset.value, row]);
  rows.sort(([a], [b]) => {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = numbers ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows.map(([, row]) => row));
}

// Show the rows that have every word, in whatever case.
function filterRows(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = Array.from(document.getElementById(input.dataset.table).tBodies[0].rows);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  input.closest(".filter").querySelector("output").value = `${shown} of ${rows.length} shown`;
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
for (const input of document.querySelectorAll("input[data-table]")) {
  input.addEventListener("input", () => filterRows(input));
  filterRows(input);
}
