"use strict";
// Filters what a page shows in any case: without this script everything is there, and the controls are not.
for (const controls of document.querySelectorAll(".controls")) {
  const items = [...controls.parentNode.querySelectorAll("[data-true], tbody tr")];
  const field = (name) => controls.querySelector(`[name=${name}]`), value = (name) => field(name)?.value ?? "";
  for (const name of ["true", "predicted"].filter(field)) {
    const classes = new Set(items.map((item) => item.dataset[name]));
    field(name).append(...[...classes].sort(new Intl.Collator("en", {numeric: true}).compare).map((each) => new Option(each)));
  }
  const update = () => {
    const words = value("search").trim().toLowerCase(), sort = value("sort");
    let shown = 0;
    for (const item of items) {
      const {dataset} = item;
      item.hidden = !(
        item.textContent.toLowerCase().includes(words) &&
        (!value("true") || dataset.true === value("true")) &&
        (!value("predicted") || dataset.predicted === value("predicted")) &&
        (!value("confidence") || dataset.confidence >= value("confidence") / 100)
      );
      shown += !item.hidden;
    }
    if (sort) {
      const order = new Intl.Collator("en", {numeric: true}).compare, key = sort.replace("-", "");
      const compare = key === "confidence" ? (a, b) => a - b : order;
      const sign = sort.startsWith("-") ? -1 : 1;
      items.sort((a, b) => sign * compare(a.dataset[key], b.dataset[key]));
      items[0]?.parentNode.append(...items);
    }
    controls.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  controls.addEventListener("input", update);
  controls.hidden = false;
  update();
}
