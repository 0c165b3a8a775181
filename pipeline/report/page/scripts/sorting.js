"use strict";
// Tables whose rows a click on a column's name sorts. Unknown values stay last.

function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const isNumber = header.classList.contains("number");
  const value = (row) => row.cells[column].dataset.value;
  const before = header.getAttribute("aria-sort");
  const first = isNumber ? "descending" : "ascending";
  const second = isNumber ? "ascending" : "descending";
  const order = before === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b));
  const rows = [...table.tBodies[0].rows].toSorted((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === "" || right === "") return (left === "") - (right === "");
    return sign * compare(left, right);
  });
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", cell === header ? order : "none");
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    cell.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}
