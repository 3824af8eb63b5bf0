"use strict";
// Tables sort by the column whose heading is pressed: numbers by value, the rest as text, absent values always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      // Numbers first sort downwards: the best accuracy is what one looks for.
      const rising = before ? before === "descending" : !numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        if (numeric) {
          const [p, q] = [x, y].map((cell) => parseFloat(cell.dataset.sort));
          if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q);
          return rising ? p - q : q - p;
        }
        const order = x.textContent.localeCompare(y.textContent, "en", { numeric: true });
        return rising ? order : -order;
      });
      body.append(...sorted);
    });
  });
}
// What is wider than its place says so; a figure is made to fit, and a tap shows it in full.
const measure = () => document.querySelectorAll(".scroll, .paper").forEach((place) => {
  const width = place.querySelector("img")?.naturalWidth ?? place.scrollWidth;
  place.classList.toggle("wide", width > place.clientWidth + 1);
});
for (const event of ["load", "resize"]) addEventListener(event, measure);
document.addEventListener("toggle", measure, true);
for (const paper of document.querySelectorAll(".paper")) {
  const turn = () => paper.classList.toggle("large", paper.classList.contains("wide") && !paper.classList.contains("large"));
  paper.addEventListener("click", turn);
  paper.addEventListener("keydown", (event) => { if (event.key === "Enter") turn(); });
}
// What is folded away on the screen belongs on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
