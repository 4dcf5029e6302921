// Sorts a table by the data-key of the cells under the clicked heading; empty keys come last in both directions.
for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const place = heading.cellIndex, down = heading.getAttribute("aria-sort") === "ascending";
    const key = row => row.cells[place].dataset.key;
    const order = button.dataset.kind === "text" ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
    const rows = [...body.rows].map((row, start) => [key(row), start, row]);
    rows.sort(([a, i], [b, j]) => (a === "") - (b === "") || (a === "" ? 0 : down ? order(b, a) : order(a, b)) || i - j);
    body.append(...rows.map(([, , row]) => row));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
}
