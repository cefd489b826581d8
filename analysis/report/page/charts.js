"use strict";
// Figures from the data that analysis/figures/interactive.py wrote. Text goes in as text, never as markup.
const Charts = (() => {
  const make = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };
  const digits = d3.format(".4~g");
  const count = value => d3.format(".3~s")(value).replace("G", "B");
  const told = value => (value === null || value === undefined ? "" : digits(value)).replace("-", "−");
  const between = at => (at.length > 1 ? ` [${told(at[1])}, ${told(at[2])}]` : "");
  const LOOK = { background: "transparent", color: "inherit", fontFamily: "inherit", fontSize: "12px", overflow: "visible",
    "--plot-background": "var(--page)" };

  // A labelled choice among titles; nothing where there is none to make.
  const choice = (label, titles, chosen, changed) => titles.length < 2 ? [] : [
    make("label", {}, label, make("select", { onchange: event => changed(event.target.selectedIndex) },
      ...titles.map((title, place) => make("option", { selected: place === chosen }, title)))),
  ];

  const legend = (series, hidden, changed) => make("div", { class: "legend", role: "group", "aria-label": "Lines, to show or to hide" },
    ...series.map(one => make("button", { type: "button", "aria-pressed": String(!hidden.has(one.name)), onclick: event => {
      if (!hidden.delete(one.name)) hidden.add(one.name);
      event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(one.name)));
      changed();
    } }, make("i", { style: `color: ${one.colour}`, class: one.dash ? "dash" : null }), one.name)));

  // The same numbers as a table, made when it is opened and, by `refresh`, whenever what is shown changes.
  const numbers = rows => {
    const body = make("div", { class: "scroll" });
    const node = make("details", { ontoggle: () => node.refresh() }, make("summary", {}, "These numbers as a table"), body);
    node.refresh = () => {
      if (!node.open) return;
      const [head, ...rest] = rows();
      body.replaceChildren(make("table", { class: "tight" },
        make("thead", {}, make("tr", {}, ...head.map(cell => make("th", { scope: "col" }, cell)))),
        make("tbody", {}, ...rest.map(row => make("tr", {}, ...row.map(cell => make("td", {}, cell)))))));
    };
    return node;
  };

  const axis = (label, log, more) => ({ label, labelArrow: "none", ...(log ? { type: "log", base: log } : {}), ...more });

  const linesMarks = (view, shown, single) => {
    const row = one => one.x.map((x, i) => ({ name: one.name, colour: one.colour, x, y: one.y[i], low: one.low?.[i],
      high: one.high?.[i] }));
    const stroke = { x: "x", y: "y", stroke: "colour", z: "name" };
    const dashed = shown.filter(one => one.dash).flatMap(row), solid = shown.filter(one => !one.dash).flatMap(row);
    const dots = shown.flatMap(one => (one.dots || []).map(dot => ({ ...dot, name: one.name, colour: one.colour, y: dot.at[0],
      low: dot.at[1], high: dot.at[2] })));
    const banded = [...solid, ...dashed].filter(d => d.low !== undefined);
    const singles = !single ? [] : shown.flatMap(one => (one.seeds || []).flatMap(run => one.x.map((x, i) => ({ x, y: run.y[i],
      colour: one.colour, z: `${one.name}/${run.seed}` }))));
    const title = d => `${d.what ? `${d.name}: ${d.what}` : d.name}\n${count(d.x)}: ${told(d.y)}` +
      (d.low === undefined ? "" : ` [${told(d.low)}, ${told(d.high)}]`);
    return [
      ...(view.zero ? [Plot.ruleY([0], { stroke: "currentColor" })] : []),
      ...(view.rule === undefined ? [] : [Plot.ruleY([view.rule], { strokeDasharray: "2 3", stroke: "currentColor" }),
        Plot.text([view.rule], { y: d => d, text: () => view.rule_label, frameAnchor: "right", dy: 8, fill: "currentColor" })]),
      ...(single ? [] : [Plot.areaY(banded, { x: "x", y1: "low", y2: "high", fill: "colour", fillOpacity: 0.15, z: "name" })]),
      Plot.lineY(singles, { x: "x", y: "y", stroke: "colour", z: "z", strokeWidth: 0.8, strokeOpacity: 0.6 }),
      Plot.lineY(solid, { ...stroke, strokeWidth: 1.8 }),
      Plot.lineY(dashed, { ...stroke, strokeWidth: 1.8, strokeDasharray: "5 4" }),
      Plot.ruleX(dots.filter(d => d.low !== undefined), { x: "x", y1: "low", y2: "high", stroke: "colour", strokeWidth: 1.4 }),
      Plot.dot(dots, { x: "x", y: "y", stroke: "colour", fill: "colour", fillOpacity: 0.35, r: 4 }),
      Plot.tip([...solid, ...dashed, ...dots].filter(d => d.y !== null), Plot.pointer({ x: "x", y: "y", title })),
    ];
  };

  const lines = (host, chart, alt, width) => {
    const hidden = new Set(), state = { view: 0, single: false };
    const below = numbers(() => table());
    const plot = make("div", { class: "plot" }), names = make("div", {});
    const view = () => chart.views[state.view];
    const shown = () => view().series.filter(one => !hidden.has(one.name));
    const draw = () => {
      const wide = width(), now = view();
      plot.replaceChildren(Plot.plot({
        width: wide, height: Math.max(260, Math.min(430, wide * 0.5)), marginLeft: 58, marginRight: 24, marginBottom: 40, style: LOOK,
        ariaLabel: `${alt}: ${now.title}`,
        x: axis(now.x, now.x_log, { tickFormat: now.x_log === 2 ? "~g" : "~s", ticks: wide < 500 ? 4 : 7, insetLeft: 6, insetRight: 6 }),
        y: axis(now.y, now.y_log, { grid: true, ...(now.y_log ? { tickFormat: "~g" } : { nice: true }) }),
        marks: linesMarks(now, shown(), state.single),
      }));
      below.refresh();
    };
    const turn = place => { state.view = place; names.replaceChildren(legend(view().series, hidden, draw)); draw(); };
    const seeds = chart.views.some(one => one.series.some(series => (series.seeds || []).length > 1));
    const single = seeds ? [make("label", {}, make("input", { type: "checkbox", onchange: event => {
      state.single = event.target.checked; draw(); } }), "each seed")] : [];
    const table = () => [["", view().x, view().y, "low", "high"], ...shown().flatMap(one => [
      ...one.x.map((x, i) => [one.name, count(x), told(one.y[i]), told(one.low?.[i]), told(one.high?.[i])]),
      ...(one.dots || []).map(dot => [`${one.name}: ${dot.what}`, count(dot.x), ...[0, 1, 2].map(i => told(dot.at[i]))])])];
    host.replaceChildren(make("div", { class: "controls" },
      ...choice("Show", chart.views.map(one => one.title), 0, turn), ...single), names, plot, below);
    turn(0);
    return draw;
  };

  const COLOURS = { better: "var(--good)", worse: "var(--bad)", equivalent: "var(--same)" };
  const forest = (host, chart, alt, width) => {
    const state = { view: 0 }, plot = make("div", { class: "plot" }), below = numbers(() => table());
    const rows = () => chart.views[state.view].rows.map(row => ({ ...row, y: row.at[0], low: row.at[1], high: row.at[2],
      colour: COLOURS[row.kind] || "currentColor" }));
    const draw = () => {
      const now = chart.views[state.view], data = rows(), place = { y: "name", stroke: "colour" };
      plot.replaceChildren(Plot.plot({
        width: width(), height: 60 + 42 * data.length, marginLeft: 16, marginRight: 16, marginBottom: 40, style: LOOK,
        ariaLabel: `${alt}: ${now.title}`,
        x: axis(now.x, 0, { grid: true, nice: true, ticks: 6 }), y: { type: "band", axis: null, domain: data.map(row => row.name) },
        marks: [
          ...(now.margin ? [Plot.rect([now.margin], { x1: -now.margin, x2: now.margin, fill: "var(--same)", fillOpacity: 0.12 })] : []),
          Plot.ruleX([0], { stroke: "currentColor" }),
          Plot.ruleY(data, { ...place, x1: "low", x2: "high", strokeWidth: 2.6, dy: 8 }),
          Plot.dot(data, { ...place, x: "y", fill: "colour", r: 4.5, dy: 8 }),
          Plot.text(data, { y: "name", text: "name", frameAnchor: "left", dy: -8, fill: "currentColor", stroke: "var(--page)",
            strokeWidth: 4, lineWidth: Infinity }),
          Plot.tip(data, Plot.pointerY({ x: "y", y: "name", dy: 8,
            title: d => `${d.name}\n${told(d.y)}${between(d.at)}\n${d.verdict}; n = ${d.n}` })),
        ],
      }));
      below.refresh();
    };
    const table = () => [["arm", chart.views[state.view].x, "low", "high", "n", "verdict"],
      ...rows().map(row => [row.name, told(row.y), told(row.low), told(row.high), String(row.n), row.verdict])];
    host.replaceChildren(make("div", { class: "controls" },
      ...choice("Metric", chart.views.map(one => one.title), 0, place => { state.view = place; draw(); })), plot, below);
    draw();
    return draw;
  };

  const SVG = "http://www.w3.org/2000/svg";
  const shade = value => (value === null ? "transparent" : d3.interpolateRdBu(1 - Math.min(value, 2000) / 2000));
  const MOST = 6000; // cells drawn at once

  // One panel: layers by experts; returns how to show another frame.
  const panel = (one, ranked, tell) => {
    const [layers, experts] = [one.frames[0].length, one.frames[0][0].length];
    const svg = document.createElementNS(SVG, "svg");
    const size = { viewBox: `0 0 ${experts} ${layers}`, preserveAspectRatio: "none", role: "img",
      style: `height: ${Math.max(2, Math.min(18, layers * 1.1))}rem` };
    for (const [name, value] of Object.entries(size)) svg.setAttribute(name, value);
    const cells = d3.range(layers * experts).map(index => {
      const cell = document.createElementNS(SVG, "rect");
      const at = { x: index % experts, y: Math.floor(index / experts), width: 1.02, height: layers > 1 ? 0.96 : 1 };
      for (const [name, value] of Object.entries(at)) cell.setAttribute(name, value);
      return svg.appendChild(cell);
    });
    let frame = 0;
    const value = index => one.frames[frame][Math.floor(index / experts)][index % experts];
    const column = index => ranked ? `number ${index % experts + 1} by load` : `expert ${index % experts}`;
    const words = index => `layer ${Math.floor(index / experts)}, ${column(index)}: ` +
      (value(index) === null ? "no such token" : `${told(value(index) / 1000)} of the balanced share`);
    svg.addEventListener("pointermove", event => {
      const index = cells.indexOf(event.target);
      if (index >= 0) tell(`${one.arm}, ${one.name}, ${words(index)}`);
    });
    const show = place => {
      frame = place;
      cells.forEach((cell, index) => cell.setAttribute("fill", shade(value(index))));
      const known = d3.range(cells.length).filter(index => value(index) !== null);
      const most = d3.greatest(known, value), least = d3.least(known, value);
      svg.setAttribute("aria-label", known.length ?
        `${one.arm}, ${one.name}: most at ${words(most)}; least at ${words(least)}` : `${one.arm}, ${one.name}: no such token`);
    };
    const node = make("div", {}, make("h3", {}, `${one.arm}, ${one.name}`), svg,
      make("p", {}, make("span", {}, layers > 1 ? `layers 0 to ${layers - 1}, downwards` : "layer 0"), make("span", {}, ranked ? `${experts} experts, by load` : `experts 0 to ${experts - 1}`)));
    return { node, show, frames: one.frames, name: `${one.arm}, ${one.name}` };
  };

  const heat = (host, chart, alt) => {
    const arms = [...new Set(chart.panels.map(one => one.arm))];
    const all = chart.panels.reduce((sum, one) => sum + one.frames[0].length * one.frames[0][0].length, 0) <= MOST;
    const titles = [...(all ? ["all"] : []), ...arms];
    const grid = make("div", { class: "heat", role: "group", "aria-label": alt }), said = make("output", {});
    const value = make("output", { style: "min-width: 5rem" }), ramp = make("span", { class: "ramp", style: `background: linear-gradient(to right, ${
      d3.range(0, 2001, 250).map(shade).join(", ")})` });
    let shown = [];
    const below = numbers(() => table());
    const slider = make("input", { type: "range", min: 0, max: chart.values.length - 1, step: 1, value: chart.start,
      oninput: () => move() });
    const move = () => {
      value.textContent = chart.values[slider.valueAsNumber];
      slider.setAttribute("aria-valuetext", value.textContent);
      shown.forEach(one => one.show(slider.valueAsNumber));
      below.refresh();
    };
    const turn = place => {
      const arm = titles[place];
      shown = chart.panels.filter(one => arm === "all" && all || one.arm === arm)
        .map(one => panel(one, chart.ranked, words => { said.textContent = words; }));
      grid.replaceChildren(...shown.map(one => one.node));
      move();
    };
    host.replaceChildren(make("div", { class: "controls" }, ...choice("Arm", titles, 0, turn),
      ...(chart.values.length > 1 ? [make("label", { style: "flex: 1 1 16rem" }, chart.slider, slider)] : []), value),
    grid, make("div", { class: "controls" }, "0", ramp, "2 or more times the balanced share"), said, below);
    function table() { // of the panels as they are shown
      const place = slider.valueAsNumber, frames = shown.map(one => [one.name, one.frames[place]]);
      const widest = Math.max(...frames.map(([, rows]) => rows[0].length));
      return [[`${chart.slider} ${chart.values[place]}`, ...d3.range(widest).map(String)], ...frames.flatMap(([name, rows]) =>
        rows.map((row, layer) => [`${name}, layer ${layer}`, ...row.map(value => value === null ? "" : told(value / 1000))]))];
    }
    turn(0);
    return () => {};
  };

  // Draw a chart into a host; returns how to draw it again at another width.
  return (host, chart, alt, width) => ({ lines, forest, heat })[chart.kind](host, chart, alt, width);
})();
