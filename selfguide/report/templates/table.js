"use strict";
// Search, filters and paging of the candidates; without it the whole table scrolls in its box.
(() => {
  const table = document.getElementById("rows");
  if (!table) return;
  const size = 25;
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const get = (id) => document.getElementById(id);
  const [search, byFilter, byLabel] = ["search", "by-filter", "by-label"].map(get);
  let page = 0;

  function matching() {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter((row, i) =>
      (!byFilter.value || row.dataset.f === byFilter.value) &&
      (!byLabel || !byLabel.value || row.dataset.l === byLabel.value) &&
      wanted.every((word) => texts[i].includes(word)));
  }

  function show() {
    const found = matching();
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = new Set(found.slice(page * size, (page + 1) * size));
    for (const row of rows) row.hidden = !shown.has(row);
    get("found").textContent = `${found.length} of ${rows.length}`;
    get("page").textContent = `${page + 1} / ${pages}`;
    get("previous").disabled = page === 0;
    get("next").disabled = page === pages - 1;
  }

  function turn(by) {
    page += by;
    show();
  }

  for (const input of [search, byFilter, byLabel]) {
    input?.addEventListener("input", () => turn(-page));
  }
  search.form.addEventListener("submit", (event) => event.preventDefault());
  get("previous").addEventListener("click", () => turn(-1));
  get("next").addEventListener("click", () => turn(1));
  for (const part of document.querySelectorAll(".tools, .pages")) part.hidden = false;
  document.documentElement.classList.add("js");
  show();
})();
