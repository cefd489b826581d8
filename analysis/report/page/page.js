"use strict";
// Pages as tabs, filters of runs, and the figures of a page when it is first opened. Without this all is there, one below another.
(() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const nav = document.getElementById("pages"), tabs = [...nav.querySelectorAll("a")];
  const panels = tabs.map(tab => document.getElementById(tab.hash.slice(1)));
  const wide = () => Math.floor(document.getElementById("content").clientWidth);
  const drawn = new Map();

  const drawIn = section => {
    for (const figure of section.querySelectorAll("figure[data-chart]")) {
      const chart = data[figure.dataset.chart];
      if (!chart || drawn.has(figure)) continue;
      drawn.set(figure, Charts(figure.querySelector(".drawn"), chart, figure.getAttribute("aria-label"), wide));
    }
  };

  const open = (place, focus) => {
    tabs.forEach((tab, each) => {
      tab.setAttribute("aria-selected", String(each === place));
      tab.tabIndex = each === place ? 0 : -1;
      panels[each].hidden = each !== place;
    });
    if (focus) tabs[place].focus();
    nav.scrollLeft = tabs[place].offsetLeft - nav.clientWidth / 3;
    drawIn(panels[place]);
  };

  const named = () => Math.max(0, panels.findIndex(panel => `#${panel.id}` === location.hash));
  const go = place => { history.replaceState(null, "", tabs[place].hash); open(place, true); };
  nav.setAttribute("role", "tablist");
  tabs.forEach((tab, place) => {
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[place].id);
    panels[place].setAttribute("role", "tabpanel");
    tab.addEventListener("click", event => { event.preventDefault(); go(place); });
    tab.addEventListener("keydown", event => {
      const last = tabs.length - 1;
      const to = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place === 0 ? last : place - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) { event.preventDefault(); go(to); }
    });
  });
  addEventListener("hashchange", () => { // another hash, the skip link's, opens no page
    if (panels.some(panel => `#${panel.id}` === location.hash)) open(named(), false);
  });
  open(named(), false);

  const again = () => drawn.forEach(draw => draw());
  let waiting;
  let before = wide();
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (wide() !== before) { before = wide(); again(); } }, 120);
  });
  addEventListener("beforeprint", () => panels.forEach(drawIn));

  const filters = document.getElementById("filters"), table = document.getElementById("all-runs");
  if (filters) {
    const rows = [...table.tBodies[0].rows], texts = rows.map(row => row.textContent.toLowerCase());
    const { text, status, shown } = filters.elements;
    const filter = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let many = 0;
      rows.forEach((row, place) => {
        row.hidden = !(words.every(word => texts[place].includes(word)) && (!status.value || row.dataset.status === status.value));
        many += row.hidden ? 0 : 1;
      });
      shown.value = `${many} of ${rows.length} runs`;
    };
    filters.hidden = false;
    filters.addEventListener("input", filter);
    filters.addEventListener("submit", event => event.preventDefault());
    filter();
    const heads = [...table.tHead.rows[0].cells];
    heads.slice(0, -1).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(each => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = row => row.cells[column].textContent.replaceAll(",", "");
        const numeric = rows.every(row => key(row) === "" || !Number.isNaN(Number(key(row))));
        const order = numeric ? (a, b) => (key(a) === "") - (key(b) === "") || key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
        table.tBodies[0].append(...[...rows].sort((a, b) => (up ? 1 : -1) * order(a, b)));
      });
    });
  }

  for (const block of document.querySelectorAll("pre, blockquote")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(block); // where the clipboard is refused, the text is at least chosen
      try { await navigator.clipboard.writeText(block.textContent); button.textContent = "Copied"; } catch { button.textContent = "Chosen: press Ctrl-C"; }
    });
    block.after(button);
  }
})();
