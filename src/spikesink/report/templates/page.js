// Draws the charts of the page, and what happens when a head is picked. No text from the data ever becomes markup.
(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const views = new Map();
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const unpacked = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  const data = new Map(Object.entries(page.figures).map(([name, figure]) => [name, unpacked(figure)]));

  function element(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Vega's own tooltip writes a style attribute and markup, which the policy of this page forbids.
  const tip = element("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function tooltip(_handler, event, _item, value) {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    const table = element("table");
    for (const [key, text] of Object.entries(typeof value === "object" ? value : { "": value })) {
      if (["null", "undefined", "NaN"].includes(String(text))) continue;
      const row = table.insertRow();
      row.insertCell().textContent = key;
      row.insertCell().textContent = text;
    }
    tip.replaceChildren(table);
    const { clientX: x, clientY: y } = event.changedTouches?.[0] ?? event;
    tip.style.left = `${Math.max(4, Math.min(x + 12, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + tip.offsetHeight + 20 > window.innerHeight ? y - tip.offsetHeight - 10 : y + 14}px`;
  }

  // ---- charts -------------------------------------------------------------------------------------------------

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  // As many names of a legend in a row as have room, none cut off.
  function columns(spec, width) {
    let [longest, room] = [0, width - 60];
    const visit = (part) => {
      for (const [key, value] of Object.entries(part ?? {})) {
        // Beside names of rows, the legend begins where they end.
        if (key === "y" && value?.type === "nominal") room = width / 2 - 60;
        if (key === "color" && Array.isArray(value?.scale?.domain)) {
          longest = Math.max(longest, ...value.scale.domain.map((name) => String(name).length));
        } else if (typeof value === "object" && key !== "datasets") visit(value);
      }
    };
    visit(spec);
    return Math.max(1, Math.min(6, Math.floor(room / (7 * longest + 40))));
  }

  async function draw(name) {
    const holder = document.querySelector(`[data-figure="${name}"] .chart`);
    views.get(name)?.finalize();
    const rows = data.get(name);
    const spec = structuredClone(page.figures[name].spec);
    spec.datasets = { ...spec.datasets, rows };
    const look = page.looks[isDark() ? "dark" : "light"];
    // Long names of rows get more of a narrow chart, in smaller letters: cut off, several would read the same.
    const narrow = holder.clientWidth < 420;
    const axis = {
      ...look.axis,
      labelLimit: Math.min(look.axis.labelLimit, (narrow ? 0.56 : 0.38) * holder.clientWidth),
      labelFontSize: narrow ? 9 : look.axis.labelFontSize,
    };
    const legend = { ...look.legend, columns: columns(spec, holder.clientWidth), labelLimit: holder.clientWidth - 60 };
    spec.config = { ...look, axis, legend };
    const { view } = await vegaEmbed(holder, spec, {
      mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false,
      tooltip,
    });
    // The words of the figure and its table say it better than hundreds of marks.
    holder.querySelector("svg").setAttribute("aria-hidden", "true");
    views.set(name, view);
    if (data.get(name) !== rows) view.data("rows", data.get(name)).run();
    if (name === "sink_map") {
      view.addEventListener("click", (_event, item) => { if (item?.datum?.id) pick(item.datum.id); });
      view.signal("picked", picked).run();
    }
  }

  // A chart takes a tenth of a second: it is drawn when it is about to be seen, and between two of them the page is
  // shown, scrolled and clicked.
  const figures = [...document.querySelectorAll("[data-figure]")];
  const asked = new Map();
  let last = Promise.resolve();

  function settle() {
    if (views.size === asked.size) root.dataset.drawn = String(views.size);
  }

  function show(name) {
    if (!asked.has(name)) {
      last = last.then(() => new Promise((next) => { setTimeout(next); })).then(() => draw(name)).then(settle);
      asked.set(name, last);
    }
    return asked.get(name);
  }

  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      show(target.dataset.figure);
    }
    settle();
  }, { rootMargin: "50%" });

  // Paper shows all of them, and is printed as soon as this has run.
  window.addEventListener("beforeprint", () => {
    for (const { dataset: { figure: name } } of figures) if (!asked.has(name)) asked.set(name, draw(name).then(settle));
  });

  function start() {
    for (const figure of figures) near.observe(figure);
    if (page.heads) pick(picked);
    if (!figures.length) settle();
  }

  // In the other colours.
  function redraw() {
    const names = [...asked.keys()];
    asked.clear();
    return Promise.all(names.map(show));
  }

  // ---- one head -----------------------------------------------------------------------------------------------

  let picked = page.heads ? page.heads.strongest : null;
  const blockField = document.getElementById("pick-block");
  const headField = document.getElementById("pick-head");

  function replace(name, rows, title) {
    if (!page.figures[name]) return;
    data.set(name, rows);
    document.querySelector(`[data-figure="${name}"] h3`).textContent = title;
    fillTable(name);
    return views.get(name)?.data("rows", rows).runAsync();
  }

  async function pick(id) {
    picked = id;
    const [block, head] = id.split("-");
    blockField.value = block;
    fillHeads(block, head);
    const facts = element("dl");
    for (const [label, value] of page.heads.facts[id]) facts.append(element("dt", label), element("dd", value));
    const where = `block ${blockField.selectedOptions[0].textContent}, head ${head}`;
    document.getElementById("head-facts").replaceChildren(element("h3", `B${where.slice(1)}`), facts);
    const { unit, values } = page.heads.importance[id];
    const importance = values.map((value, position) => ({ position, importance: value * unit }));
    await replace("head_importance", importance, `Importance by key position: ${where}`);
    const plane = page.heads.planes?.heads[id];
    if (plane) {
      const kinds = page.heads.planes.kinds;
      const points = kinds.map((kind, i) => ({ kind, x: plane.values[2 * i] * plane.unit, y: plane.values[2 * i + 1] * plane.unit }));
      await replace("head_plane", points, `Queries and keys: ${where} (${plane.explained} of the variance)`);
    }
    await views.get("sink_map")?.signal("picked", id).runAsync();
    root.dataset.picked = id;
  }

  function fillHeads(block, head) {
    const heads = Object.keys(page.heads.facts).filter((id) => id.startsWith(`${block}-`)).map((id) => id.split("-")[1]);
    headField.replaceChildren(...heads.map((name) => element("option", name)));
    headField.value = heads.includes(head) ? head : heads[0];
  }

  if (page.heads) {
    blockField.addEventListener("change", () => { fillHeads(blockField.value, headField.value); pick(`${blockField.value}-${headField.value}`); });
    headField.addEventListener("change", () => pick(`${blockField.value}-${headField.value}`));
  }

  // ---- data to take along -------------------------------------------------------------------------------------

  // A cell that a spreadsheet would run as a formula gets a quote in front.
  const plain = (value) => (typeof value === "string" && /^[=+@\t\r-]/.test(value) ? `'${value}` : String(value ?? ""));
  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function csv(name) {
    const rows = data.get(name);
    const columns = rows.length ? Object.keys(rows[0]) : page.figures[name].columns;
    return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
      .map((row) => row.map((value) => quoted(plain(value))).join(",")).join("\r\n") + "\r\n";
  }

  async function content(name, kind) {
    if (kind === "csv") return new Blob([csv(name)], { type: "text/csv" });
    await show(name);
    const view = views.get(name);
    if (kind === "svg") return new Blob([await view.toSVG()], { type: "image/svg+xml" });
    const canvas = await view.toCanvas(2);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  async function save(name, kind) {
    const link = element("a");
    link.href = URL.createObjectURL(await content(name, kind));
    link.download = `${name}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const MOST_ROWS = 300;

  function fillTable(name) {
    const details = document.querySelector(`[data-figure="${name}"] details.rows`);
    if (!details?.open) return;
    const rows = data.get(name);
    const columns = rows.length ? Object.keys(rows[0]) : [];
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const column of columns) { const cell = element("th", column); cell.scope = "col"; head.append(cell); }
    const body = table.createTBody();
    for (const row of rows.slice(0, MOST_ROWS)) {
      const line = body.insertRow();
      for (const column of columns) line.insertCell().textContent = row[column] ?? "";
    }
    const more = rows.length > MOST_ROWS ? [element("p", `${rows.length - MOST_ROWS} more rows are in the CSV.`)] : [];
    details.querySelector(".scroll").replaceChildren(table, ...more);
  }

  for (const figure of figures) {
    const name = figure.dataset.figure;
    for (const button of figure.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(name, button.dataset.save));
    figure.querySelector("details.rows").addEventListener("toggle", () => fillTable(name));
  }

  // ---- tables that are sorted and filtered ------------------------------------------------------------------------

  for (const table of document.querySelectorAll("table.live")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const filters = table.closest("section").querySelector("[data-filters]");
    const key = (row, column) => row.cells[column].dataset.sort ?? "";

    function sort(column) {
      // Numbers, the largest first; words from A; what is missing comes last either way.
      const down = heads[column].getAttribute("aria-sort") !== "descending" && (heads[column].getAttribute("aria-sort") === "ascending" || heads[column].classList.contains("n"));
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (one, other) => {
        const [a, b] = [key(one, column), key(other, column)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const difference = Number.isNaN(a - b) ? a.localeCompare(b) : a - b;
        return down ? -difference : difference;
      };
      body.append(...[...rows].sort(order));
    }

    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => sort(column)));

    function filter() {
      const words = filters.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = [...filters.querySelectorAll("select")].filter((field) => field.value);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word))
          || !chosen.every((field) => row.cells[field.dataset.column].textContent === field.value);
        shown += !row.hidden;
      }
      filters.querySelector("[data-shown]").textContent = `${shown} of ${rows.length}`;
    }

    for (const field of filters.querySelectorAll("select")) {
      const values = new Set(rows.map((row) => row.cells[field.dataset.column].textContent));
      for (const value of [...values].sort()) { const option = element("option", value); option.value = value; field.append(option); }
      field.addEventListener("change", filter);
    }
    filters.querySelector("input").addEventListener("input", filter);
    filter();
  }

  // ---- commands to take along ---------------------------------------------------------------------------------

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 2000);
    });
  }

  // ---- light and dark -----------------------------------------------------------------------------------------

  const buttons = document.querySelectorAll("[data-theme]:not(html)");

  function theme(name) {
    if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.theme === name));
    return redraw();
  }

  for (const button of buttons) button.addEventListener("click", () => theme(button.dataset.theme));
  dark.addEventListener("change", () => { if (!root.dataset.theme) redraw(); });
  start();
})();
